"""Many FTP control sessions at once: all log in, negotiate, and stay.

argv: serve ADDRESS             answers every line; each session's 227 names a port of its own
      join SERVER COUNT FROM... COUNT sessions from each address; prints "negotiated N" once
                                all have their 227, and at SIGUSR1 says NOOP in each of them
                                and prints "alive N"
"""
import asyncio
import itertools
import resource
import signal
import sys

AT_ONCE = 200
FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


async def serve(address):
    answers = {
        b"USER": b"331 password\r\n",
        b"PASS": b"230 welcome\r\n",
        b"NOOP": b"200 ok\r\n",
    }
    host, ports = address.replace(".", ",").encode(), itertools.count(20_000)

    async def session(reader, writer):
        writer.write(b"220 ready\r\n")
        passive = b"227 Passive (%s,%d,%d)\r\n" % (host, *divmod(next(ports), 256))
        own = {**answers, b"PASV": passive}
        while line := await reader.readline():
            writer.write(own.get(line[:4].upper().strip(), b"500 what?\r\n"))

    server = await asyncio.start_server(session, address, 21, backlog=4096)
    print("serving", flush=True)
    await server.serve_forever()


async def join(server, count, sources):
    sessions, turn = [], asyncio.Semaphore(AT_ONCE)

    async def ask(stream, line, code):
        stream[1].write(line)
        got = await stream[0].readline()
        assert got.startswith(code), got

    async def one(source):
        async with turn:
            stream = await asyncio.open_connection(server, 21, local_addr=(source, 0))
            await ask(stream, b"", b"220")
            await ask(stream, b"USER u\r\n", b"331")
            await ask(stream, b"PASS p\r\n", b"230")
            await ask(stream, b"PASV\r\n", b"227")
            sessions.append(stream)

    await asyncio.gather(*(one(source) for source in sources for _ in range(count)))
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, told.set)
    print("negotiated", len(sessions), flush=True)
    while True:
        await told.wait()
        told.clear()
        alive = 0
        for stream in sessions:
            await ask(stream, b"NOOP\r\n", b"200")
            alive += 1
        print("alive", alive, flush=True)


if sys.argv[1] == "serve":
    asyncio.run(serve(sys.argv[2]))
else:
    asyncio.run(join(sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
