"""pyftpdlib with AUTH TLS on port 21 of both families. argv: user, password, directory, certificate."""
import sys
import threading

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import PassiveDTP, TLS_FTPHandler
from pyftpdlib.servers import ThreadedFTPServer

user, password, directory, certificate = sys.argv[1:5]
authorizer = DummyAuthorizer()
authorizer.add_user(user, password, directory, perm="elr")


class Acceptor(PassiveDTP):
    """Picks its port alone: with SO_REUSEADDR two threads can bind the same one, and the
    later listen() fails and ends its session without a reply."""
    picking = threading.Lock()

    def __init__(self, *args, **kwargs):
        with self.picking:
            super().__init__(*args, **kwargs)


class Handler(TLS_FTPHandler):
    passive_dtp = Acceptor
    certfile = certificate
    passive_ports = range(50300, 50400)
    use_sendfile = False


Handler.authorizer = authorizer
ThreadedFTPServer(("::", 21), Handler).serve_forever()
