"""Requests that two servers may read differently, as bytes: each with what must become of it.

`{auth}` is a valid token, and `{size}` the length of HIDDEN: a request that stands where a body belongs.
"""

HIDDEN = "GET /api/account HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {auth}\r\n\r\n"
_POST = "POST /api/influencer/rex/profile-set/completed HTTP/1.1\r\n"
_AUTH = "Authorization: Bearer {auth}\r\n"
_HEAD = f"{_POST}Host: x\r\n{_AUTH}"
_GET = f"GET /api/account HTTP/1.1\r\nHost: x\r\n{_AUTH}"

# Refused with one answer below 500, after which the connection is closed: nothing behind it is read as a request.
REFUSED = {
    "a length and chunks": f"{_HEAD}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "chunks and a length": f"{_HEAD}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{HIDDEN}",
    "two lengths": f"{_HEAD}Content-Length: 0\r\nContent-Length: 50\r\n\r\n{HIDDEN}",
    "two lengths in one": f"{_HEAD}Content-Length: 0, 50\r\n\r\n{HIDDEN}",
    "a length with a sign": f"{_HEAD}Content-Length: +50\r\n\r\n{HIDDEN}",
    "a length below zero": f"{_HEAD}Content-Length: -1\r\n\r\n{HIDDEN}",
    "a length in hexadecimal": f"{_HEAD}Content-Length: 0x10\r\n\r\n{HIDDEN}",
    "a length of other digits": f"{_HEAD}Content-Length: ٤\r\n\r\n{HIDDEN}",
    "a space before the colon": f"{_HEAD}Content-Length : 50\r\n\r\n{HIDDEN}",
    "an encoding after chunks": f"{_HEAD}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{HIDDEN}",
    "an unknown encoding": f"{_HEAD}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "an encoding with a tab": f"{_HEAD}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "two encodings": f"{_HEAD}Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "a chunk in hexadecimal twice": f"{_HEAD}Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n{HIDDEN}",
    "a chunk below zero": f"{_HEAD}Transfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n{HIDDEN}",
    "a chunk of 2^80": f"{_HEAD}Transfer-Encoding: chunked\r\n\r\n{'f' * 21}\r\na\r\n0\r\n\r\n{HIDDEN}",
    "a chunk without its end": f"{_HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n{HIDDEN}",
    "two hosts": f"{_GET}Host: y\r\n\r\n",
    "no host": "GET /api/account HTTP/1.1\r\nAuthorization: Bearer {auth}\r\n\r\n",
    "two tokens": f"{_GET}Authorization: Bearer imp_other\r\n\r\n",
    "two owners": f"{_GET}Imprint-Owner: ada\r\nImprint-Owner: bob\r\n\r\n",
    "two keys": f"{_HEAD}Content-Length: 0\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n\r\n",
    "a null in a header": f"{_GET}Imprint-Owner: ada\0bob\r\n\r\n",
    "a carriage return in a header": f"{_GET}Imprint-Owner: ada\rImprint-Owner: bob\r\n\r\n",
    "a header without a name": f"{_GET}: x\r\n\r\n",
    "a header without a colon": f"{_GET}Imprint-Owner\r\n\r\n",
    "headers without end": f"{_GET}{'X-A: ' + 'a' * 1000}" + f"\r\n{'X-A: ' + 'a' * 1000}" * 200 + "\r\n\r\n",
    "a space in the address": "GET /api/account x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {auth}\r\n\r\n",
    "another protocol": "GET /api/account HTTP/9.9\r\nHost: x\r\nAuthorization: Bearer {auth}\r\n\r\n",
    "no protocol": "GET /api/account\r\n\r\n",
    "the preface of HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}

# Answered like the same request without the trick, with this status.
HARMLESS = {
    "an owner with an underscore": (f"{_GET}Imprint_Owner: bob\r\n\r\n", 200),
    "another method in a header": (f"{_GET}X-HTTP-Method-Override: DELETE\r\n\r\n", 200),
    "another address in a header": (f"{_GET}X-Original-URL: /metrics\r\nX-Rewrite-URL: /metrics\r\n\r\n", 200),
    "another host in a header": (f"{_GET}X-Forwarded-Host: evil.example\r\nForwarded: host=evil\r\n\r\n", 200),
    "an operator in a header": (f"{_GET}X-Remote-User: root\r\nX-Forwarded-User: root\r\n\r\n", 200),
    "an upgrade to HTTP/2": (f"{_GET}Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", 200),
    "an upgrade to a socket": (
        f"{_GET}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        200,
    ),
    "a hop that drops the token": (f"{_GET}Connection: Authorization\r\n\r\n", 200),
    "the address of another host": (
        f"GET http://evil.example/api/account HTTP/1.1\r\nHost: x\r\n{_AUTH}\r\n", 404,
    ),
    "two slashes": (f"GET //api/account HTTP/1.1\r\nHost: x\r\n{_AUTH}\r\n", 404),
    "a way up": (f"GET /static/../../../etc/passwd HTTP/1.1\r\nHost: x\r\n{_AUTH}\r\n", 404),
    "a way up, encoded": (f"GET /static/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: x\r\n{_AUTH}\r\n", 404),
    "an answer in the address": (
        f"GET /api/account%0d%0aSet-Cookie:%20a=b HTTP/1.1\r\nHost: x\r\n{_AUTH}\r\n", 404,
    ),
    "a GET with a request as its body": (f"{_GET}Content-Length: {{size}}\r\n\r\n", 200),
}  # fmt: skip
