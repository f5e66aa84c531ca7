#!/bin/sh
# usage: pbs.sh JOB    print whether a job of PBS Pro or OpenPBS is running, success or failed
said=$(qstat -x -f "$1" 2>/dev/null) || said=
case $said in
    *"job_state = F"*"Exit_status = 0"* | *"Exit_status = 0"*"job_state = F"*) echo success ;;
    *"job_state = F"*) echo failed ;;
    *) echo running ;; # also while PBS does not answer
esac
