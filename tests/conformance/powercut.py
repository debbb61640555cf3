"""Promotions under kills and power cuts, from the program's own system calls.

Usage: powercut.py LIMBECK ARTIFACT PUBKEY [--cuts N] [--seed N]

Kills: strace kills the process at each of its system calls that write, cold (an empty store) and warm. After
each the store has to be whole, what was acknowledged has to be there, and promoting again has to work.

Power cuts: the calls of whole promotions are recorded and replayed into a model of a disk on which only what was synced is sure.
Of everything else a cut keeps what chance has: of each folder's names a beginning or any part of them, of each file's content what
was synced, or a torn part of what was written. The same with syncs of files, or of folders, left out has to be caught, or the test
would show nothing. A promotion that goes on where a killed one stopped is among the recorded.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile

WRITES = "write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,chmod,fchmod,fchmodat,ftruncate,utimensat,copy_file_range,sendfile"
RECORDED = WRITES + ",openat,open,creat"


def run(args, **more):
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, **more)


class Store:
    """The program, on one store."""

    def __init__(self, limbeck, artifact, key):
        self.limbeck, self.artifact, self.key = limbeck, artifact, key

    def promote(self, store, channel="staging"):
        return [self.limbeck, "promote", self.artifact, "--store", store, "--channel", channel, "--key", self.key, "--json"]

    def log(self, store):
        found = run([self.limbeck, "log", "--store", store, "--json"])
        return json.loads(found.stdout) if found.returncode == 0 else None

    def fault(self, store, acknowledged):
        """What is wrong with a store after an accident, or None. Promotes again on the way."""
        if os.path.isdir(os.path.join(store, "log")):
            checked = run([self.limbeck, "fsck", "--store", store])
            if checked.returncode != 0:
                return "fsck: " + checked.stdout + checked.stderr
        log = self.log(store)
        if acknowledged and (log is None or log["head"] not in acknowledged):
            return f"an acknowledged promotion is gone: {log and log['head']} is not {acknowledged}"
        again = run(self.promote(store))
        if again.returncode != 0:
            return "promoting again: " + again.stdout + again.stderr
        checked = run([self.limbeck, "fsck", "--store", store])
        return None if checked.returncode == 0 else "fsck in the end: " + checked.stdout + checked.stderr


# --- kills


def kills(program, base):
    """Kills at every writing call of a promotion; how many there are. `base` is a store to begin with, or None."""
    total = 0
    # strace counts each system call by itself.
    for call in WRITES.split(","):
        n = 1
        while killed_at(program, base, call, n):
            n += 1
        total += n - 1
    return total


def killed_at(program, base, call, n):
    """Whether the promotion had an n-th such call. The store has to be whole either way."""
    with tempfile.TemporaryDirectory() as home:
        store = os.path.join(home, "store")
        if base:
            shutil.copytree(base, store)
        before = program.log(store) if base else None
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={n}"]
        killed = run(["strace", "-f", "-qq", "-o", "/dev/null", *inject, *program.promote(store)])
        # What was told on stdout was told: then the entry has to be there.
        said = killed.stdout.strip()
        acknowledged = [json.loads(said)["head"]] if said.endswith("}") else []
        after = program.log(store) if os.path.isdir(os.path.join(store, "log")) else None
        if before and (after is None or after["head"]["seq"] < before["head"]["seq"]):
            sys.exit(f"killed at {call} {n}: the log went back")
        fault = program.fault(store, acknowledged)
        if fault:
            sys.exit(f"killed at {call} {n}: {fault}")
        return killed.returncode != 0


# --- recording


def unescape(text):
    return bytes.fromhex(text.replace("\\x", "")) if text else b""


LINE = re.compile(r"^(\d+)\s+(\w+)\((.*)\)\s+=\s+(-?\d+|\?)(?:<(.*?)>)?")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
DESCRIPTOR = re.compile(r"^(\d+|AT_FDCWD)<([^>]*)>")


def decoded(path):
    return re.sub(r"\\x([0-9a-f]{2})", lambda m: chr(int(m.group(1), 16)), path)


def record(command, kill_at=None):
    """The calls that change something: (call, arguments...), and what the process said. `kill_at` is a call and its number."""
    with tempfile.NamedTemporaryFile() as out:
        inject = ["-e", "inject={}:signal=SIGKILL:when={}".format(*kill_at)] if kill_at else []
        done = run(["strace", "-f", "-qq", "-y", "-xx", "-s", "16000000", "-o", out.name, "-e", f"trace={RECORDED}"] + inject + command)
        text = open(out.name, encoding="latin-1").read()
    waiting, calls = {}, []
    for line in text.splitlines():
        pid = line.split(None, 1)[0]
        if line.endswith("<unfinished ...>"):
            waiting[pid] = line[: -len("<unfinished ...>")]
            continue
        resumed = re.match(r"^\d+\s+<\.\.\. \w+ resumed>(.*)$", line)
        if resumed:
            line = waiting.pop(pid, "") + resumed.group(1)
        found = LINE.match(line)
        if not found or found.group(4) == "?" or int(found.group(4)) < 0:
            continue
        _, name, args, result, opened = found.groups()
        calls.append((name, args, int(result), decoded(opened) if opened else None))
    return calls, done


def arguments(args):
    """Descriptors' paths and strings, in their order."""
    parts = []
    for part in args.split(", "):
        descriptor, string = DESCRIPTOR.match(part), STRING.match(part)
        if descriptor:
            parts.append(decoded(descriptor.group(2)).strip('"'))
        elif string:
            parts.append(unescape(string.group(1)))
        else:
            parts.append(part)
    return parts


class Disk:
    """Names and contents as the processes see them, and as far as they are sure."""

    def __init__(self, root):
        self.root, self.live, self.sure, self.pending = root, {}, {}, {}
        self.content, self.synced = [], []

    def load(self):
        for folder, _, files in os.walk(self.root):
            self.live[folder] = self.sure[folder] = "dir"
            for name in files:
                path = os.path.join(folder, name)
                self.content.append(bytearray(open(path, "rb").read()))
                self.synced.append(bytes(self.content[-1]))
                self.live[path] = self.sure[path] = len(self.content) - 1

    def names(self, *changes):
        """One change of a folder: all of it happens, or nothing."""
        for path, what in changes:
            if what is None:
                self.live.pop(path, None)
            else:
                self.live[path] = what
        self.pending.setdefault(os.path.dirname(changes[0][0]), []).append(changes)

    def apply(self, call, sabotage):
        name, args, result, opened = call
        parts = arguments(args)
        at = lambda i: os.path.join(parts[i], parts[i + 1].decode())
        mine = lambda path: path == self.root or path.startswith(self.root + "/")
        if name == "openat" and "O_CREAT" in args and opened and mine(opened):
            if opened not in self.live:
                self.content.append(bytearray())
                self.synced.append(b"")
                self.names((opened, len(self.content) - 1))
            elif "O_TRUNC" in args:
                self.content[self.live[opened]].clear()
        elif name in ("write", "pwrite64") and mine(parts[0]) and parts[0] in self.live:
            data = self.content[self.live[parts[0]]]
            if name == "pwrite64":
                data[int(parts[3]) : int(parts[3]) + result] = parts[1][:result]
            else:
                data += parts[1][:result]
        elif name in ("copy_file_range", "sendfile", "writev", "ftruncate"):
            if any(isinstance(part, str) and mine(part) for part in parts):
                sys.exit(f"the model knows no {name}")
        elif name in ("fsync", "fdatasync") and mine(parts[0]):
            what = self.live.get(parts[0])
            if what == "dir" and sabotage != "folders":
                for change in self.pending.pop(parts[0], []):
                    self.settle(self.sure, change)
            elif isinstance(what, int) and sabotage != "files":
                self.synced[what] = bytes(self.content[what])
        elif name == "mkdir" and mine(parts[0].decode()):
            self.names((parts[0].decode(), "dir"))
        elif name in ("rename", "link"):
            old, new = parts[0].decode(), parts[1].decode()
            if mine(new):
                self.names((new, self.live[old]), *([(old, None)] if name == "rename" else []))
        elif name in ("renameat", "renameat2", "linkat"):
            old, new = at(0), at(2)
            if mine(new):
                self.names((new, self.live[old]), *([] if name == "linkat" else [(old, None)]))
        elif name == "unlink" and mine(parts[0].decode()):
            self.names((parts[0].decode(), None))
        elif name == "unlinkat" and mine(at(0)):
            self.names((at(0), None))

    @staticmethod
    def settle(names, change):
        for path, what in change:
            if what is None:
                names.pop(path, None)
            else:
                names[path] = what

    def cut(self, chance, target):
        """What is left after the power went, written to `target`."""
        names = dict(self.sure)
        for changes in self.pending.values():
            if chance.random() < 0.5:
                kept = changes[: chance.randint(0, len(changes))]
            else:
                kept = [change for change in changes if chance.random() < 0.5]
            for change in kept:
                self.settle(names, change)
        os.makedirs(target)
        torn = {}
        for path in sorted(names, key=lambda p: p.count("/")):
            to = target + path[len(self.root) :]
            if to != target and not os.path.isdir(os.path.dirname(to)):
                continue
            what = names[path]
            if what == "dir":
                os.makedirs(to, exist_ok=True)
                continue
            if what not in torn:
                sure, written = self.synced[what], bytes(self.content[what])
                torn[what] = sure
                if sure != written:
                    torn[what] = chance.choice([sure, written[: chance.randint(0, len(written))], written, bytes(len(written))])
            with open(to, "wb") as file:
                file.write(torn[what])


def cuts(program, steps, count, seed, sabotage=None):
    """Cuts the power `count` times, all over the recorded `steps` of (calls, said). Returns how many cuts lost something."""
    root, base, recorded = steps
    chance = random.Random(seed)
    disk = Disk(root)
    if base:
        saved = Disk(base)
        saved.load()
        move = lambda path: root + path[len(base) :]
        disk.live = {move(p): w for p, w in saved.live.items()}
        disk.sure, disk.content, disk.synced = dict(disk.live), saved.content, saved.synced
    points = [(i, j) for i, (calls, _) in enumerate(recorded) for j in range(len(calls) + 1)]
    wanted = sorted(chance.choices(points, k=count))
    acknowledged, lost, first = [], 0, None
    for i, (calls, said) in enumerate(recorded):
        for j in range(len(calls) + 1):
            for _ in range(wanted.count((i, j))):
                with tempfile.TemporaryDirectory() as home:
                    store = os.path.join(home, "store")
                    disk.cut(chance, store)
                    fault = program.fault(store, acknowledged)
                    if fault:
                        lost += 1
                        first = first or f"cut after call {j} of promotion {i + 1}: {fault}"
                    if fault and sabotage:
                        return lost, first
            if j < len(calls):
                disk.apply(calls[j], sabotage)
                name, args, *_ = calls[j]
                if name == "write" and args.startswith("1<") and said:
                    acknowledged = [said]
    return lost, first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("limbeck"), parser.add_argument("artifact"), parser.add_argument("pubkey")
    parser.add_argument("--cuts", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=17)
    args = parser.parse_args()
    program = Store(*(os.path.abspath(p) for p in (args.limbeck, args.artifact, args.pubkey)))
    with tempfile.TemporaryDirectory() as home:
        home = os.path.realpath(home)
        warm = os.path.join(home, "warm")
        # Its content is here already, and another channel serves it.
        first = run(program.promote(warm, "production"))
        if first.returncode != 0:
            sys.exit("the artifact can't be promoted: " + first.stderr)
        cold_kills = kills(program, None)
        warm_kills = kills(program, warm)
        print(f"killed at each of {cold_kills} writing calls of a first promotion and {warm_kills} of a second one: nothing lost")

        root = os.path.join(home, "recorded/store")
        os.makedirs(os.path.dirname(root))
        total = 0
        # Before the recorded promotion: nothing, or one that was killed there. The last syncs of one are those of the version, its
        # folder, all folders, the entry, its folder.
        syncs = sum(name == "fsync" for name, *_ in record(program.promote(root))[0])
        before = [
            ("nothing", None),
            ("folders", ("fsync", 2)),
            ("all but the sync of the version's name", ("fsync", syncs - 8)),
            ("all but the entry", ("linkat", 1)),
            ("all but the last sync", ("fsync", syncs)),
        ]
        for label, kill_at in before:
            shutil.rmtree(root, ignore_errors=True)
            recorded = []
            if kill_at:
                recorded.append((record(program.promote(root), kill_at)[0], None))
            calls, done = record(program.promote(root))
            recorded.append((calls, json.loads(done.stdout)["head"]))
            steps = (root, None, recorded)
            n = args.cuts // len(before)
            lost, first = cuts(program, steps, n, args.seed)
            if lost:
                sys.exit(f"{lost} of {n} power cuts lost something (before it: {label}): {first}")
            total += n
            for sabotage in ("files", "folders"):
                lost, _ = cuts(program, steps, n, args.seed, sabotage)
                if not lost:
                    sys.exit(f"without syncs of {sabotage} nothing was lost in {n} cuts (before it: {label}): the model shows nothing")
        print(f"{total} power cuts: nothing lost, nothing torn; without syncs of files or of folders the loss is seen each time")


main()
