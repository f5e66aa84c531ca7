#!/bin/sh
# usage: lsf.sh JOB    print whether a job of LSF is running, success or failed
state=$(bjobs -noheader -o stat "$1" 2>/dev/null) || state=
case $state in
    DONE) echo success ;;
    EXIT) echo failed ;;
    *) echo running ;; # also while LSF does not answer
esac
