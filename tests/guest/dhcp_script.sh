#!/bin/sh
# What a DHCP client runs when something happened: configure the interface, then note everything it was told. For udhcpc
# (its word is $1, its values are plain names) and for dhclient (its word is $reason, its values are called new_*).
: "${interface:?}" "${ip:=$new_ip_address}" "${router:=$new_routers}"
case ${1:-$reason} in
bound | renew | BOUND | RENEW | REBOOT)
    ip link set "$interface" mtu "${mtu:-${new_interface_mtu:-1500}}"
    ip address replace "$ip/${mask:-24}" dev "$interface"
    ip route replace default via "$router"
    ;;
deconfig | RELEASE | EXPIRE)
    ip address flush dev "$interface"
    ip link set "$interface" up
    ;;
PREINIT)
    ip link set "$interface" up
    ;;
esac
{
    echo "event=${1:-$reason}"
    env | grep -E '^(ip|mask|router|dns|mtu|lease|serverid|search|new_[a-z_]+)=' | sed 's/^new_//'
    echo
} >>"$LEASE_LOG"
