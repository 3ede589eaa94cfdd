#!/bin/sh
# The first program of the guest. Options that it takes from the kernel's command line:
#   vmm.report         print the guest's report and power off
#   vmm.run=COMMAND    run a command, in double quotes if it has spaces, or "base64:..." of a script; say how it
#                      ended as "vmm: exit=N", and power off with N as the machine's exit code
# With neither: a shell on the console, and power off when it ends.
echo "vmm: init reached"

export PATH=/bin HOME=/root TERM=vt100
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
hostname vmm
ifconfig lo up

# Load the drivers of all devices that are there; a driver of a bus finds more of them.
known=
while :; do
    found=$(cat /sys/bus/*/devices/*/modalias | sort -u)
    [ "$found" = "$known" ] && break
    known=$found
    echo "$found" | xargs modprobe -abq 2>/dev/null
done

# Power off; a status other than 0 goes out through the board's test finisher ("sifive,test0"), when there is one.
finish() {
    finisher=$(echo /proc/device-tree/soc/test@*)
    umount -a -r 2>/dev/null
    sync
    [ "$1" = 0 ] || [ "${finisher%\*}" != "$finisher" ] || devmem "0x${finisher#*@}" 32 $(($1 << 16 | 0x3333))
    poweroff -f
}

read -r options </proc/cmdline
case " $options" in
*[\ \"]vmm.run=*)
    command=${options#*vmm.run=}
    case $options in
    *\"vmm.run=*) command=${command%%\"*} ;;
    *vmm.run=\"*) command=${command#\"} command=${command%%\"*} ;;
    *) command=${command%% *} ;;
    esac
    case $command in
    base64:*) printf %s "${command#base64:}" | base64 -d >/tmp/run ;;
    *) printf '%s\n' "$command" >/tmp/run ;;
    esac
    sh /tmp/run
    status=$?
    echo "vmm: exit=$status"
    finish $status
    ;;
*" vmm.report"*)
    report
    finish 0
    ;;
esac

echo 4 >/proc/sys/kernel/printk
echo
echo "Linux $(uname -r) on $(nproc) harts. 'report' tells of the machine, 'exit' powers it off."
cd /root
setsid cttyhack sh
finish 0
