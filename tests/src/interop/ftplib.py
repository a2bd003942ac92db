"""Logs in, lists the directory and fetches a file with ftplib as it comes.

argv: a JSON object with host, port, user, password, file, into, timeout (s), tls (bool),
ccc (bool), tls12 (bool: nothing newer), passive (bool).
"""
import ftplib
import json
import ssl
import sys

o = json.loads(sys.argv[1])

if o["tls"]:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if o["tls12"]:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    ftp = ftplib.FTP_TLS(timeout=o["timeout"], context=context)
else:
    ftp = ftplib.FTP(timeout=o["timeout"])
ftp.set_debuglevel(1)
ftp.connect(o["host"], o["port"])
ftp.login(o["user"], o["password"])
if o["tls"]:
    ftp.prot_p()
if o["ccc"]:
    ftp.ccc()
ftp.set_pasv(o["passive"])
ftp.retrlines("LIST")
with open(o["into"], "wb") as file:
    ftp.retrbinary("RETR " + o["file"], file.write)
ftp.quit()
