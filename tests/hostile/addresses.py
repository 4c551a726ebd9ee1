"""Addresses that strangers may name: the denied, the public, and those that are refused by their looks."""

# IP addresses that must never be dialled, whatever name or redirect leads to them.
_DENIED = (
    "0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.0.0.53 "
    "127.255.255.254 168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 169.254.169.123 172.16.0.1 172.17.0.1 "
    "172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 "
    "198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 "
    ":: ::1 ::127.0.0.1 ::169.254.169.254 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 "
    "64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b::10.0.0.1 64:ff9b:1::1 64:ff9b:1::7f00:1 100::1 2001::1 2001:2::1 "
    "2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe::1 2002:808:808::1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254 "
    "fd12:3456:789a::1 fe80::1 fe80::1%eth0 febf::1 fec0::1 ff02::1 ff05::1"
)
DENIED = _DENIED.split()

# The neighbours of those, and what may stand for a public host.
_PUBLIC = (
    "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 169.253.255.255 "
    "172.15.255.255 172.32.0.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 "
    "2606:4700:4700::1111 2a00:1450:4001::1 64:ff9b::808:808 ::ffff:8.8.8.8"
)
PUBLIC = _PUBLIC.split()

# Addresses that are refused by their looks alone, before anything is looked up.
REFUSED_BY_LOOKS = [
    # literals in every spelling that the C library understands
    *(f"http://[{ip}]/" if ":" in ip else f"http://{ip}/" for ip in DENIED if "%" not in ip),
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://0xa9fea9fe/latest/meta-data/",
    "http://2852039166/latest/meta-data/",
    "http://0251.0376.0251.0376/",
    "http://127.0.0.1./",
    "http://127。0。0。1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://[::ffff:7f00:1]/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]/",
    "http://[fe80::1%25eth0]/",
    "http://[::1]:80/",
    # this machine by name
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://x.localhost/",
    # ports
    "http://example.com:22/",
    "http://example.com:6379/",
    "http://example.com:8080/",
    "https://example.com:8443/",
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:99999999999/",
    "http://example.com:x/",
    # user info, and what looks like it
    "http://user@example.com/",
    "http://user:password@example.com/",
    "http://:@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1#@example.com/",
    "http://example.com\\@127.0.0.1/",
    "http://example.com%00@127.0.0.1/",
    "http://127.0.0.1?@example.com/",
    # other schemes
    "ftp://example.com/a.png",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:11211/stats",
    "ldap://127.0.0.1/",
    "javascript:alert(1)",
    "data:image/png;base64,AAAA",
    "jar:http://127.0.0.1!/",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "ws://example.com/",
    "httpx://example.com/",
    # not addresses
    "",
    "http://",
    "http:///path",
    "http://:80/",
    "http:example.com",
    "//example.com/a.png",
    "example.com/a.png",
    "http://exa mple.com/",
    "http://example.com\r\nHost: evil/",
    "http://exa\tmple.com/",
    "http://%6c%6f%63alhost/",
    "http://localhost%00.example.com/",
    "http://[::1/",
    "http://[not-an-address]/",
    "http://-example.com/",
    "http://" + "a" * 64 + "." * 3 + "/",
    "http://example.com/" + "a" * 9000,
]
