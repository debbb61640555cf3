"""Referee of what limbeck encrypts: rage, by PyPI's pyrage, and the programs age and rage where they are on the PATH.

    python age.py LIMBECK ARTIFACT
"""
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pyrage

limbeck, artifact = sys.argv[1:]
artifact = pathlib.Path(artifact)
place = pathlib.Path(tempfile.mkdtemp())
environment = {k: v for k, v in os.environ.items() if not k.startswith("LIMBECK_")}


def run(*words, want=0, **secrets):
    done = subprocess.run([limbeck, *words], cwd=place, capture_output=True, text=True, env=environment | secrets)
    assert done.returncode == want, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def identity(path):
    text = pathlib.Path(path).read_text()
    (secret,) = [line for line in text.splitlines() if line.startswith("AGE-SECRET-KEY-")]
    return pyrage.x25519.Identity.from_str(secret)


programs = [name for name in ("age", "rage") if shutil.which(name)]
try:
    # Keys: ours are rage's, rage's are ours.
    run("keys", "identity", "ours.txt")
    ours = identity(place / "ours.txt")
    assert run("keys", "recipient", "ours.txt").strip() == str(ours.to_public())
    theirs = pyrage.x25519.Identity.generate()
    (place / "theirs.txt").touch(mode=0o600)
    (place / "theirs.txt").write_text(f"# of rage\n{theirs}\n")
    assert run("keys", "recipient", "theirs.txt").strip() == str(theirs.to_public())

    # Folders, for two recipients: rage reads each file, and limbeck reads what rage wrote instead.
    sizes = [0, 1, 1000, 65535, 65536, 65537, 131072, 1_000_000]
    plain = {str(size): os.urandom(size) for size in sizes}
    folder = place / "traces"
    folder.mkdir()
    for name, data in plain.items():
        (folder / name).write_bytes(data)
    run("seal", "traces", "--to", str(ours.to_public()), "--to", str(theirs.to_public()))
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.age" for name in plain)
    for name, data in plain.items():
        path = folder / f"{name}.age"
        for who in (ours, theirs):
            assert pyrage.decrypt(path.read_bytes(), [who]) == data, name
        for program in programs:
            out = subprocess.run([program, "-d", "-i", place / "ours.txt", path], capture_output=True, check=True).stdout
            assert out == data, (program, name)
        path.write_bytes(pyrage.encrypt(data, [theirs.to_public(), ours.to_public()]))
    run("unseal", "traces", "--identity", "theirs.txt")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == plain

    # Of what rage wrote, changed or shortened: nothing is read, and the file stays.
    sealed = pyrage.encrypt(plain["1000"], [ours.to_public()])
    shutil.rmtree(folder)
    folder.mkdir()
    refused = 0
    for at in list(range(0, len(sealed), 7)) + [len(sealed) - 1]:
        changed = bytearray(sealed)
        changed[at] ^= 1
        for bad in (bytes(changed), sealed[:at]):
            (folder / "a.age").write_bytes(bad)
            said = run("unseal", "traces", "--identity", "ours.txt", want=1)
            assert "a.age" in said and sorted(p.name for p in folder.iterdir()) == ["a.age"], (at, said)
            refused += 1

    # A store: each blob is an age file whose content has the digest that names it.
    version = json.loads((artifact / "manifest.json").read_text())
    store = place / "store"
    store.mkdir()
    (store / "encryption.json").write_text(
        json.dumps({"format": "age-encryption.org/v1", "recipients": [str(theirs.to_public())]})
    )
    key = os.environ.get("LIMBECK_TEST_KEY")
    words = ["promote", str(artifact), "--channel", "staging", "--store", "store"] + (["--key", key] if key else [])
    run(*words)
    blobs = sorted((store / "blobs/sha256").iterdir())
    assert blobs and all(path.suffix == ".age" for path in blobs)
    content = {}
    for path in blobs:
        data = pyrage.decrypt(path.read_bytes(), [theirs])
        assert hashlib.sha256(data).hexdigest() == path.stem, path
        content[path.stem] = data
    named = [file["sha256"] for file in version["files"].values()]
    assert set(named) <= set(content)
    # And one that rage encrypted is as good as ours.
    path = blobs[0]
    path.chmod(0o644)
    path.unlink()
    path.write_bytes(pyrage.encrypt(content[path.stem], [theirs.to_public()]))
    run("fsck", "--store", "store", LIMBECK_AGE_IDENTITY=str(theirs))
    said = run("fsck", "--store", "store", want=6, LIMBECK_AGE_IDENTITY=str(ours))
    assert str(theirs.to_public()) in said and str(ours.to_public()) in said, said
    print(
        f"rage reads ours and limbeck reads rage's: keys, {len(plain)} sizes for two recipients, {len(blobs)} blobs of a store; "
        f"of {refused} changed or shortened files none is read"
        + (f"; {' and '.join(programs)} read ours too" if programs else "")
    )
finally:
    shutil.rmtree(place)
