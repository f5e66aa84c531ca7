#!/bin/sh
# usage: slurm.sh JOB    print whether a job of SLURM is running, success or failed
state=$(squeue --noheader --states=all --jobs="$1" --format=%T 2>&1)
case $state in
    COMPLETED) echo success ;;
    BOOT_FAIL | CANCELLED | DEADLINE | FAILED | NODE_FAIL | OUT_OF_MEMORY | PREEMPTED | TIMEOUT) echo failed ;;
    *"Invalid job id"*) echo failed ;; # it ended minutes ago, and SLURM no longer knows how
    *) echo running ;; # also while SLURM does not answer
esac
