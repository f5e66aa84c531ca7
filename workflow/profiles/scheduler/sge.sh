#!/bin/sh
# usage: sge.sh JOB    print whether a job of Grid Engine is running, success or failed
said=$(qstat -j "$1" 2>&1)
case $said in
    *"do not exist"*) ;;
    *) # it is there, or Grid Engine does not answer
        echo running
        exit
        ;;
esac
# Accounting follows the end of a job after some seconds. It never knows of a job that was deleted before it ran.
for _ in 1 2 3 4 5; do
    said=$(qacct -j "$1" 2>/dev/null) && break
    sleep 2
done
code=$(echo "$said" | awk '$1 == "failed" || $1 == "exit_status" { printf "%s ", $2 }')
case $code in
    "0 0 ") echo success ;;
    *) echo failed ;;
esac
