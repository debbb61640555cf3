"""An S3 server on loopback for tests of the store: moto, answering one request after the other.

    python s3_server.py PORT [--threads]
    python s3_server.py --race ROUNDS     how often two of 8 concurrent conditional writes both win, with and without threads

One after the other, because moto looks whether an object is there and writes it in two steps, with no lock around them: with a
thread a request two writers can both be told that they were first. (It is rare, 0 of 500 rounds, for Python seldom changes
threads there. But what a test of the store rests on must not happen at all.)
"""
import http.client
import subprocess
import sys
import threading

from werkzeug.serving import make_server


def serve(port, threaded):
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", port, app, threaded=threaded)
    print(server.server_port, flush=True)
    server.serve_forever()


def put(port, path, body=b"", headers=None):
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("PUT", path, body, {**signed, **(headers or {})})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def race(rounds):
    for threads in ([], ["--threads"]):
        command = [sys.executable, __file__, "0", *threads]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        port = int(server.stdout.readline())
        try:
            assert put(port, "/race") == 200
            several, none = 0, 0
            for n in range(rounds):
                wins, ready = [], threading.Barrier(8)

                def write(who):
                    ready.wait()
                    if put(port, f"/race/{n}", str(who).encode() * 200, {"If-None-Match": "*"}) == 200:
                        wins.append(who)

                writers = [threading.Thread(target=write, args=(who,)) for who in range(8)]
                [t.start() for t in writers]
                [t.join() for t in writers]
                several += len(wins) > 1
                none += not wins
            kind = "a thread a request" if threads else "one after the other"
            print(f"{kind}: of {rounds} rounds {several} had several winners, {none} none", flush=True)
            if several and not threads:
                sys.exit("the server lets several win: no test of the store can rest on it")
        finally:
            server.kill()


if __name__ == "__main__":
    if sys.argv[1] == "--race":
        race(int(sys.argv[2]))
    else:
        serve(int(sys.argv[1]), "--threads" in sys.argv)
