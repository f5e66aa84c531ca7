#!/bin/sh
# usage: pbs.sh JOB    print whether a job of PBS Pro or OpenPBS is running, success or failed
said=$(qstat -x -f "$1" 2>&1)
case $said in
    *"job_state = F"*"Exit_status = 0"* | *"Exit_status = 0"*"job_state = F"*) echo success ;;
    *"job_state = F"*) echo failed ;;
    *"job history"*) # "PBS is not configured to maintain job history"
        echo "$said; how a job ended is unknown without it; ask the site to set job_history_enable" >&2
        exit 1
        ;;
    *) echo running ;; # also while PBS does not answer
esac
