#!/bin/sh
# What the guest sees of its machine, in lines of "name: value".

field() {
    sed -n "s/^$1[[:space:]]*: *//p" "$2" | head -n 1
}

mebibytes() {
    echo "$(($(field "$1" /proc/meminfo | cut -d ' ' -f 1) / 1024)) MiB"
}

line() {
    printf '  %-8s %s\n' "$1:" "$2"
}

echo "vmm: report"
line kernel "$(uname -srm)"
line cpus "$(nproc) x $(field isa /proc/cpuinfo), $(field mmu /proc/cpuinfo)"
line memory "$(mebibytes MemTotal), $(mebibytes MemAvailable) available"
for disk in /sys/block/*; do
    case $disk in
    */\* | */loop* | */ram*) ;;
    *) line disk "${disk##*/}, $(($(cat "$disk/size") / 2048)) MiB$([ "$(cat "$disk/ro")" = 0 ] || echo ", read-only")" ;;
    esac
done
for interface in /sys/class/net/*; do
    case $interface in
    */\* | */lo) ;;
    *) line network "${interface##*/}, $(cat "$interface/address")" ;;
    esac
done
[ ! -r /sys/class/rtc/rtc0/since_epoch ] || line clock "$(cat /sys/class/rtc/rtc0/date) $(cat /sys/class/rtc/rtc0/time) UTC"
line modules "$(cut -d ' ' -f 1 /proc/modules | sort | tr '\n' ' ')"
line uptime "$(cut -d ' ' -f 1 /proc/uptime) s"
echo "vmm: end of report"
