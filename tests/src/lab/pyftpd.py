"""pyftpdlib with AUTH TLS on port 21 of both families. argv: user, password, directory, certificate."""
import sys

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import TLS_FTPHandler
from pyftpdlib.servers import ThreadedFTPServer

user, password, directory, certificate = sys.argv[1:5]
authorizer = DummyAuthorizer()
authorizer.add_user(user, password, directory, perm="elr")


class Handler(TLS_FTPHandler):
    certfile = certificate
    passive_ports = range(50300, 50400)
    use_sendfile = False


Handler.authorizer = authorizer
ThreadedFTPServer(("::", 21), Handler).serve_forever()
