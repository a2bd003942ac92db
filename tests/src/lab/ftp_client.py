"""Fetches one file with ftplib over a forced command, and reports as one line of JSON.

argv: a JSON object with host, family (v4, v6), command (PORT, EPRT, PASV, EPSV), user,
password, file, timeout (s), tls (bool), hold (s: pause between negotiation and transfer).
"""
import ftplib
import hashlib
import json
import re
import socket
import ssl
import sys
import time

o = json.loads(sys.argv[1])
V4 = o["family"] == "v4"
result = {"login": False, "negotiated": False, "data": False, "bytes": 0, "sha256": None, "error": None}


class Forced:
    """The command that was asked for, whatever the family suggests."""

    def makepasv(self):
        if o["command"] == "PASV":
            _, port = ftplib.parse227(self.sendcmd("PASV"))
        else:
            # Not parse229: it would judge by the peer's family what we know already.
            reply = self.sendcmd("EPSV")
            port = int(re.search(r"\(\|\|\|(\d+)\|\)", reply).group(1))
        result["negotiated"] = True
        return self.sock.getpeername()[0], port

    def makeport(self):
        sock = socket.create_server(("", 0), family=self.af, backlog=1)
        port = sock.getsockname()[1]
        host = self.sock.getsockname()[0]
        if o["command"] == "PORT":
            self.sendport(host, port)
        else:
            self.voidcmd("EPRT |%d|%s|%d|" % (1 if V4 else 2, host, port))
        result["negotiated"] = True
        sock.settimeout(self.timeout)
        return sock


class Plain(Forced, ftplib.FTP):
    pass


class Tls(Forced, ftplib.FTP_TLS):
    pass


def session():
    if o["tls"]:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return Tls(timeout=o["timeout"], context=context)
    return Plain(timeout=o["timeout"])


def fetch(ftp):
    digest = hashlib.sha256()

    def take(block):
        digest.update(block)
        result["bytes"] += len(block)

    ftp.retrbinary("RETR " + o["file"], take, blocksize=1 << 16)
    result["sha256"] = digest.hexdigest()
    result["data"] = True


start = time.monotonic()
try:
    ftp = session()
    ftp.connect(o["host"], 21)
    ftp.login(o["user"], o["password"])
    result["login"] = True
    if o["tls"]:
        ftp.prot_p()
    ftp.set_pasv(o["command"] in ("PASV", "EPSV"))
    fetch(ftp)
    ftp.quit()
except Exception as e:
    result["error"] = "%s: %s" % (type(e).__name__, e)
result["elapsed"] = time.monotonic() - start
print(json.dumps(result))
