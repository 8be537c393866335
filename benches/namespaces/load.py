"""load.py NAMESPACE ROUNDS SECONDS: wrk over each path in turn, and what the proxies' CPU was. Prints medians of all rounds.

From the environment: ADDRESSES, a line for each path with its address, and PROXIES, a line with its processes."""

import os
import re
import statistics
import subprocess
import sys

namespace, rounds, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3]
addresses = dict(line.split() for line in os.environ["ADDRESSES"].splitlines())
proxies = {line.split()[0]: line.split()[1:] for line in os.environ["PROXIES"].splitlines()}
FLOORS = {"hbone": "tcp2", "nested": "tcp3"}
UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "us": 1e-3, "ms": 1, "s": 1e3}


def cpu(path):
    """CPU seconds that the path's processes have used so far."""
    ticks = 0
    for pid in proxies.get(path, []):
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def stolen():
    """Ticks that the host had for others, and all of them."""
    fields = [int(field) for field in open("/proc/stat").readline().split()[1:9]]
    return fields[7], sum(fields)


def value(pattern, text):
    number, unit = re.search(pattern, text).groups()
    return float(number) * UNITS[unit]


def load(path, file, connections, *headers):
    """wrk's output, what it did in a second, and CPU seconds of the proxies."""
    before = cpu(path)
    command = ["ip", "netns", "exec", namespace, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
    command += ["--latency", *headers, f"http://{addresses[path]}/{file}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return text, cpu(path) - before


failed = 0
figures = {}
before = stolen()
for number in range(rounds):
    order = list(addresses)[number % len(addresses):] + list(addresses)[: number % len(addresses)]
    for path in order:
        def add(name, figure):
            figures.setdefault((path, name), []).append(figure)

        text, used = load(path, "big", 1)
        read = value(r"requests in [\d.]+m?s, ([\d.]+)([KMG]?B) read", text)
        rate = value(r"Transfer/sec: +([\d.]+)([KMG]?B)", text)
        add("bulk, Gb/s", rate * 8 / 1e9)
        add("CPU-s/GB", used / (read / 1e9))
        for name, headers in (("new", ["-H", "Connection: close"]), ("keep", [])):
            text, used = load(path, "", 16, *headers)
            add(f"{name}/s", float(re.search(r"Requests/sec: +([\d.]+)", text)[1]))
            add(f"{name}, CPU-us", used * 1e6 / int(re.search(r"(\d+) requests in", text)[1]))
            if name == "keep":
                for percent in ("50", "99"):
                    add(f"p{percent}, ms", value(rf"{percent}% +([\d.]+)(us|ms|s)", text))
            errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
            failed += sum(map(int, errors.groups())) if errors else 0
            errors = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
            failed += int(errors[1]) if errors else 0
        print(f"round {number + 1} of {rounds}: {path}", file=sys.stderr)
taken = [after - start for start, after in zip(before, stolen())]

names = list(dict.fromkeys(name for _, name in figures))
print(f"{'':<8}" + "".join(f"{name:>14}" for name in names))
for path in addresses:
    print(f"{path:<8}" + "".join(f"{statistics.median(figures[path, name]):>14.2f}" for name in names))
    if floor := FLOORS.get(path):
        pairs = [zip(figures[path, name], figures[floor, name]) for name in names]
        ratios = [statistics.median(ours / theirs if theirs else 0 for ours, theirs in pair) for pair in pairs]
        print(f"  / {floor:<4}" + "".join(f"{ratio:>14.2f}" for ratio in ratios))
print(f"{failed} failed")
print(f"stolen by the host: {100 * taken[0] / taken[1]:.1f} % of the CPU")
sys.exit(failed > 0)
