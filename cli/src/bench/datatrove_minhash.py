"""datatrove's MinHash deduplication over the lines of a JSONL file ({"id", "text"}), with its defaults (word 5-grams, 14
buckets of 8 hashes), in two tasks. Ends with its figures as a line of JSON; pairs.jsonl names the pairs to look for."""
import argparse, glob, json, os, resource, struct, time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", required=True, help="folder with messages.jsonl and pairs.jsonl")
    parser.add_argument("--work", required=True, help="empty folder")
    args = parser.parse_args()

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.readers import JsonlReader
    import importlib.metadata

    TASKS = 2
    rows = os.path.join(args.work, "rows")
    os.makedirs(rows)
    ids = [[] for _ in range(TASKS)]
    out = [open(os.path.join(rows, f"{t:05d}.jsonl"), "w") for t in range(TASKS)]
    with open(os.path.join(args.dir, "messages.jsonl")) as lines:
        for n, line in enumerate(lines):
            row = json.loads(line)
            ids[n % TASKS].append(row["id"])
            out[n % TASKS].write(line)
    [f.close() for f in out]

    config = MinhashConfig()
    folder = lambda name: os.path.join(args.work, name)
    stages = {
        "signature": ([JsonlReader(rows), MinhashDedupSignature(output_folder=folder("sigs"), config=config)], TASKS),
        "buckets": ([MinhashDedupBuckets(input_folder=folder("sigs"), output_folder=folder("buckets"), config=config)], config.num_buckets),
        "cluster": ([MinhashDedupCluster(input_folder=folder("buckets"), output_folder=folder("remove"), config=config)], 1),
    }
    seconds = {}
    for name, (pipeline, tasks) in stages.items():
        begun = time.time()
        LocalPipelineExecutor(pipeline=pipeline, tasks=tasks, workers=min(2, tasks), logging_dir=folder("log-" + name),
                              start_method="fork").run()
        seconds[name] = time.time() - begun

    parent = {}

    def root(x):
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x
    for path in glob.glob(os.path.join(folder("buckets"), "**", "*.dups"), recursive=True):
        data = open(path, "rb").read()
        for f1, d1, f2, d2 in struct.iter_unpack("<4I", data):
            parent[root((f2, d2))] = root((f1, d1))
    at = {i: (t, n) for t in range(TASKS) for n, i in enumerate(ids[t])}
    asked = found = 0
    for line in open(os.path.join(args.dir, "pairs.jsonl")):
        pair = json.loads(line)
        if pair["jaccard"] >= 0.8 and pair["a"] in at and pair["b"] in at:
            asked += 1
            found += root(at[pair["a"]]) == root(at[pair["b"]])
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    cpu = sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in whose)
    peak = max(resource.getrusage(who).ru_maxrss for who in whose) // 1024
    print(json.dumps({"version": importlib.metadata.version("datatrove"), "rows": sum(map(len, ids)), "seconds": seconds,
                      "pairs": asked, "found": found, "cpu_seconds": cpu, "peak_rss_mib": peak}))


# Its workers import this file again.
if __name__ == "__main__":
    main()
