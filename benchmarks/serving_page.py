"""Write docs/serving-speed.md from results/serving.json and results/serving_peers.json.

    python benchmarks/serving_page.py

`tests/test_benchmarks.py` checks that the page is what this program writes.
"""

# ruff: noqa: E501  # lines of the page
from __future__ import annotations

import textwrap
from typing import Any

from measurements import ROOT, read, table
from serving_figures import met
from serving_peers import BY_OPENVINO

PAGE = ROOT / "docs" / "serving-speed.md"

#: Targets: figure of the summary, limit, whether more is better, description.
TARGETS = (
    ("tensor_share", 0.90, True, "binary FP32 tensors over HTTP at saturation, share of the bare session's rate"),
    ("pixel_share", 0.90, True, "the same with pixels (UINT8)"),
    ("photo_time_ratio", 1.15, False, "JPEG at saturation, time compared with its parts measured separately"),
    ("photo_time_in_turn", 1.15, False, "the same compared with its parts in one process, without a server"),
    ("photo_alone_ratio", 1.15, False, "JPEG alone, p50 compared with the sum of its parts' p50"),
    ("photo_alone_in_turn", 1.15, False, "the same compared with its parts in one process, without a server"),
    ("alone_over_ms", 1.5, False, "a tensor alone, p50 above the bare session's (ms)"),
    ("refused_p99_ms", 50.0, False, "503 under ten times the capacity, p99 (ms)"),
)


_BY_CPU = {
    "_cpu_share": "client and server together",
    "_cpu_share_without_client": "the server alone",
}
_BARE = {
    "echo": "Starlette alone, which echoes the request",
    "sink": "Starlette alone with a response of the same size (sink)",
}


def wanted_rows(figures: dict[str, dict[str, float]]) -> list[list[str]]:
    rows = []
    for name, limit, more, words in TARGETS:
        ms = name.endswith("_ms")
        rows.append(_wanted(words, figures[name], limit, more, ms))
        if name.endswith("_share"):  # by what programs beside this one change least
            for what, apart in _BY_CPU.items():
                figure = figures[name.replace("_share", what)]
                rows.append([f"- by CPU time per image, {apart}", "-", *_shown(figure, ms=False), ""])
        if f"{name}_openvino" in figures:
            rows.append(
                _wanted("- with OpenVINO, compared with the same", figures[f"{name}_openvino"], limit, more, ms)
            )
    for name, figure in figures.items():
        if name.startswith("nothing_"):
            _, size, other = name.split("_")
            rows.append(
                _wanted(f"no network, {int(size):,} bytes, rate compared with {_BARE[other]}", figure, 0.60, True)
            )
    return rows


def _wanted(words: str, figure: dict[str, float], limit: float, more: bool, ms: bool = False) -> list[str]:
    wanted = f"{limit:.2f} ms" if ms else f"{limit:.0%}"
    return [words, f"{'at least' if more else 'at most'} {wanted}", *_shown(figure, ms), met(figure, limit, more)]


def _shown(figure: dict[str, float], ms: bool) -> list[str]:
    value, low, high = (f"{figure[name]:.2f}" if ms else f"{figure[name]:.0%}" for name in ("value", "low", "high"))
    return [f"{value} ms" if ms else value, f"{low} to {high}"]


def _rates(row: dict[str, Any]) -> str:
    rates = row["rounds"]["rate"]
    return f"{min(rates):,.1f} to {max(rates):,.1f}"


def side_rows(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [
        [
            name,
            f"{row['rate']:.1f}",
            _rates(row),
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.1f}" if "p99_ms" in row else "-",
            f"{row['server_cpu_ms' if 'server_cpu_ms' in row else 'cpu_ms']:.2f}",
            f"{row['client_cpu_ms']:.2f}" if "client_cpu_ms" in row else "-",
        ]
        for name, row in rows.items()
    ]


def nothing_rows(results: dict[str, dict[str, dict[str, Any]]]) -> list[list[str]]:
    return [
        [
            f"{int(size):,}",
            name,
            f"{row['rate']:,.0f}",
            _rates(row),
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.1f}",
            f"{1000 * row['server_cpu_ms']:.0f}",
            f"{1000 * row['client_cpu_ms']:.0f}",
        ]
        for size, sides in results.items()
        for name, row in sides.items()
    ]


def peer_rows(result: dict[str, Any], kind: str) -> list[list[str]]:
    ratios = {(one["ours"].split(",")[0], one["way"], one["kind"], one["in_flight"]): one for one in result["ratios"]}
    rows = []
    for row in sorted(result["rows"], key=lambda row: row["in_flight"]):
        if row["kind"] == kind:
            beside = [ratios.get((server, row["way"], kind, row["in_flight"])) for server in ("ours", BY_OPENVINO)]
            slowest = row["rounds"]["p99_ms"]
            rows.append(
                [
                    str(row["in_flight"]),
                    row["way"],
                    peer_setting(row["setting"]),
                    f"{row['rate']:.1f}",
                    _rates(row),
                    f"{row['p50_ms']:.1f}",
                    f"{row['p99_ms']:.1f}",
                    f"{min(slowest):.1f} to {max(slowest):.1f}",
                    f"{row['server_cpu_ms']:.1f}",
                    f"{row['client_cpu_ms']:.2f}",
                    *(_ratio(ratio[name]) if ratio else "" for ratio in beside for name in ("rate", "p99")),
                ]
            )
    return rows


def peer_setting(setting: dict[str, Any]) -> str:
    words = f"{setting['callers']} x {setting['threads']}, {setting['batch']}"
    if "decoders" in setting:
        words += f"; decoders: {setting['decoders']}"
    return words + ("; plain queue" if setting.get("fast_queue") is False else "")


def _ratio(one: dict[str, float]) -> str:
    return f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def setting_of(setting: dict[str, int]) -> str:
    callers = setting.get("callers", setting.get("executors"))
    words = f"{callers} x {setting['threads']} threads, batch {setting['batch']}"
    if "decoders" in setting:
        words += f", decoders: {setting['decoders']}"
    if setting.get("spinning"):
        words += ", spinning"
    return words + (f", {setting['in_flight']} requests in flight" if "in_flight" in setting else "")


def verdict(result: dict[str, Any], server: str) -> str:
    ratios = [one for one in result["ratios"] if one["ours"].startswith(f"{server},")]
    many = [one for one in ratios if one["in_flight"] > 1]
    twice = [met(one["rate"], 2.0) for one in many]
    ahead = [[met(one[name], 1.0) for name in ("rate", "p99")] for one in ratios]
    both = sum(one == ["yes", "yes"] for one in ahead)
    others = "; ".join(
        f"{one['way']}, {one['kind']}, {one['in_flight']} in flight (rate: {rate}, p99: {p99})"
        for one, (rate, p99) in zip(ratios, ahead, strict=True)
        if (rate, p99) != ("yes", "yes")
    )
    return (
        f"ahead in rate and in p99, in every round, in {both} of {len(ratios)} comparisons; twice the rate in "
        f"{twice.count('yes')} of the {len(many)} with {max(one['in_flight'] for one in ratios)} in flight, undecided in "
        f"{twice.count('undecided')}" + (f". Not ahead in every round: {others}." if others else ".")
    )


def overload_text(row: dict[str, Any]) -> str:
    health = ", ".join(f"{status} ({n} times)" for status, n in sorted(row["health"]["statuses"].items()))
    return (
        f"Pixels, an open loop of {row['offered']:,.0f} requests/s, ten times the rate measured above: {row['refused']:,} requests "
        f"were refused with 503, p99 {row['refused_p99_ms']:.1f} ms from the time they were sent and "
        f"{row['refused_from_due_p99_ms']:.1f} ms from the time they were due, because the client, on the same cores, was late "
        f"itself (p99 {row['lag_p99_ms']:.1f} ms); {row['dropped']:,.0f} per round found no free connection of the client. "
        f"Meanwhile {row['rate']:.1f} requests/s were answered correctly, and liveness and readiness probes got {health}, the "
        f"slowest after {row['health']['slowest_ms']:.0f} ms."
    )


def openvino_text(result: dict[str, Any]) -> str:
    settings = result["models"]["settings"]["openvino"]
    if not settings:
        return "OpenVINO was not installed."
    many = "; ".join(f"{name} {setting_of(one)}" for name, one in settings.items() if one["in_flight"] > 1)
    return (
        f"By OpenVINO {result['machine']['versions']['openvino']}, which computes the same FP32 files, is proved in the same way "
        f"and is what `tune` may choose, the server runs with: {many}. The targets compare it with the bare session of ONNX "
        "Runtime; the table has a bare session of OpenVINO as well."
    )


#: Part of the connection layer -> what it does, the line of the checklist (tests/checklist) that fails without it, and
#: what became of it.
PARTS = {
    "body_receiver": ("bodies are received into the memory in which they are used", "", "kept"),
    "response_coalescing": ("head and body of a response in one write", "", "deleted"),
    "scheduling": ("the event loop does not preempt inferences (`SCHED_BATCH`)", "", "kept"),
    "allocator": ("glibc keeps freed memory (`mallopt`)", "", "deleted"),
    "http_parser": ("`Upgrade` does not end a request's body", "07e", "kept"),
    "head_deadline": ("time limit of a request's head", "11", "kept"),
    "write_stall_deadline": ("time limit of a client that does not read", "11c", "kept"),
    "idle_eviction": ("idle connections make room for new ones", "12b", "kept"),
    "head_size_limit": ("64 KiB of head, chunk sizes and trailers", "07c, 09", "kept"),
    "pipelining_limit": ("100 pipelined requests", "07i", "kept"),
    "health_connections": ("health requests on a server that is full", "12a", "kept"),
}


def ablation_rows(summary: dict[str, Any]) -> list[list[str]]:
    """Return a row for each case and part: what its removal changes."""
    return [
        [
            case,
            part.replace("nothing", "nothing (control)"),
            *(_change(figures[name]) for name in ("rate", "p99_ms", "server_cpu_ms")),
        ]
        for case, parts in summary.items()
        for part, figures in parts.items()
    ]


def _change(figure: dict[str, float]) -> str:
    value, low, high = (f"{100 * (figure[name] - 1):+.1f}" for name in ("ratio", "low", "high"))
    return f"{value} % ({low} to {high})"


def connection_text() -> str:
    ablation, servers = read("serving_ablation"), read("serving_http_servers")
    network, busy, noop = ablation["network"], ablation["network_busy"], ablation["noop"]
    machine = ablation["machine"]
    columns = ["requests", "without", "rate", "p99", "server's CPU time per request"]
    parts = [[name, *words] for name, words in PARTS.items()]
    rows = [
        [
            f"{int(size):,}",
            name,
            f"{row['rate']:,.0f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.1f}",
            f"{1000 * row['server_cpu_ms']:.0f}",
        ]
        for size, several in servers["bytes"].items()
        for name, row in several.items()
    ]
    return f"""## Connection layer

The server uses uvicorn's HTTP protocol with parts of its own around it. `python benchmarks/serving_ablation.py` switches off
one part at a time and measures that server and the complete one in turns; a part stays if it brings 2 % of rate or p99 on the
real network, or if a test of the checklist (`tests/checklist`) fails without it.

{table(["part", "what it does", "checklist", "decision"], parts)}

Change when a part is switched off, with a 95 % interval; a lower rate, a higher p99 or more CPU time mean that the part helps.
{ablation["name"]} at 224 pixels in FP32, default settings, {len(network["rounds"])} rounds on {machine["cores"]} cores
({machine["cpu"]}), tensors of 602 kB and JPEG files of 58 kB; other programs used {network["busy_cores_before"]:g} cores at the
start.

{table(columns, ablation_rows(network["summary"]))}

The same in an earlier run of {len(busy["rounds"])} rounds, in which other programs used all cores:

{table(columns, ablation_rows(busy["summary"]))}

**Neither run resolves 2 %**: the intervals of the control ("nothing") are as wide as most effects. These decisions follow.

`body_receiver` stays: with 16 tensors in flight p99 and CPU time rise without it, and with the session below that answers at
once and large bodies the rate falls by more than the control varies.

`scheduling` stays: where other programs use the cores, which is what it is for, rate, p99 and CPU time of 16 tensors in flight
are worse without it.

`allocator` was deleted: in the first run CPU time is lower and the rate higher without it in every row. `response_coalescing`
is undecided: no row differs from the control's, and it was deleted because the server is simpler without it. Both were
measured in the version before, so their rows cannot be measured again.

A session that answers at once, {len(noop["rounds"])} rounds, requests of two sizes, while other programs used {noop["busy_cores_before"]:g}
cores:

{table(columns, ablation_rows(noop["summary"]))}

No public option of uvicorn covers these limits: `limit_concurrency` refuses health requests as well and closes no idle
connection, `h11_max_incomplete_event_size` is for the slower h11 parser, and there is no time limit for heads, bodies or
clients that do not read. hypercorn has `h11_max_incomplete_size` and `read_timeout`, which restarts with every byte, and no limit
of connections or of writing. granian has `http1_header_read_timeout`, `http1_buffer_size` and `backpressure`, but does not
close idle connections in favor of new ones, does not answer health requests when it is full, and has no time limit of
writing. So none of them passes checklist lines 11c, 12a and 12b. `python benchmarks/serving_http_servers.py` measures the same
Starlette application behind each; 16 requests in flight, bodies of two sizes, responses of 4,200 bytes:

{table(["bytes", "server", "requests/s", "p50 (ms)", "p99 (ms)", "CPU (us)"], rows)}
"""


def wrapped(text: str) -> str:
    """Fill the lines of paragraphs; headings and tables stay as they are."""
    parts = text.split("\n\n")
    return "\n\n".join(part if part[:1] in ("#", "|") else textwrap.fill(part, 118) for part in parts) + "\n"


def page() -> str:
    result, peers = read("serving"), read("serving_peers")
    machine, settings, photos = result["machine"], result["models"]["settings"], result["photos"]
    rows = result["models"]["rows"]
    beside = {name: peers["peers"][name] for name in ("litserve", "mlserver", "kserve") if name in peers["peers"]}
    bare = "; ".join(
        f"{dtype} {i} is {setting_of(one)}" for dtype, best in settings["bare"].items() for i, one in enumerate(best, 1)
    )
    columns = ["side", "images/s", "rounds", "p50 (ms)", "p99 (ms)", "CPU ms/image", "client's"]
    peer_columns = [
        *("in flight", "server", "callers x threads, batch", "requests/s", "rounds", "p50 (ms)", "p99 (ms)", "rounds"),
        *("CPU ms", "client's", "ours: rate", "ours: p99"),
        *("by OpenVINO: rate", "by OpenVINO: p99"),
    ]
    return wrapped(f"""# Speed of the server

`python benchmarks/serving_page.py` writes this page from what `benchmarks/serving.py` and `benchmarks/serving_peers.py`
measured. Machine: {machine["cpu"]}, {machine["cores"]} cores, {machine["system"]}, Python {machine["python"]}, onnxruntime
{machine["versions"]["onnxruntime"]}; other programs kept {result["busy_cores_before"]:.2f} cores busy when the first began and
{peers["busy_cores_before"]:.2f} when the second did. {result["network"]} at 224 pixels in FP32, medians of
{result["rounds"]} and of {peers["rounds"]} rounds that alternate between the sides. **Client and server share the {machine["cores"]} cores**: the
client's CPU time is in the tables, and lowers the server's share of the bare session's rate. The client is that of
`regnet-deploy bench`; all loads but the overload are closed loops, and every answer of a network is compared with that of
the bare session. 99th percentiles are those of the requests of all rounds together. Both were measured on 24 November 2026
(commit 901efb7); the connection layer was measured later, and has lost two parts since then (last section but one).

## Targets and results

Figures are computed from medians; the range is that of the single rounds. A target within the range is undecided. The rate
of the bare session is that of its fastest row below.

{table(["figure", "target", "measured", "range of the rounds", "met"], wanted_rows(result["summary"]))}

## Compared with its parts

`python benchmarks/serving.py`. The bare session runs in one process. Its three fastest settings are shown, of one caller or
one for each core, batches of 1, 2, 4 and 8, and threads that block (as ours) or spin (ONNX Runtime's default):
{bare}. The server runs with the fastest of three settings: tensors {setting_of(settings["http"]["float32"])}; pixels
{setting_of(settings["http"]["uint8"])}; photographs {setting_of(settings["photos"])}, with one decode process or one for each
core, whichever was faster. "Alone" means one request at a time, with {setting_of(settings["alone"])} on both sides.
{openvino_text(result)} Photographs are synthetic, of {photos["width"]}x{photos["height"]} pixels,
quality {photos["quality"]}, {sum(photos["bytes"]) / len(photos["bytes"]) / 1000:.0f} kB; they run on the variant that takes
pixels. Their parts, measured separately (decoding in one process for each core, and the bare session), give
{result["summary"]["photo_parts_rate"]["value"]:.1f} images/s one after the other on all cores, and
{result["summary"]["photo_parts_p50_ms"]["value"]:.2f} ms for one image. `decode and infer` does both for each image in one
process, so that each part evicts the other's data from the caches, as in a server.

{table(columns, side_rows(rows))}

## Under overload

{overload_text(result["models"]["overload"])}

## Without a network

The complete server with a session that answers at once, and Starlette alone behind the same uvicorn: `echo` sends back the
request's body; `sink` sends as many bytes as our response has, so for large requests it is the fair comparison. 16
connections, binary tensors, CPU time in microseconds per request.

{table(["bytes", "server", "requests/s", "rounds", "p50 (ms)", "p99 (ms)", "CPU (us)", "client's (us)"], nothing_rows(result["nothing"]))}

{connection_text()}
## Compared with other servers

`python benchmarks/serving_peers.py` installs {", ".join(f"{name} {version}" for name, version in beside.items())} into separate
environments and gives each the same ONNX files, session options and preprocessing, and the fastest handler that we could
write for it: LitServe takes raw bytes through a FastAPI dependency, in one worker process or one for each core, with and
without batches, with both of its queues; MLServer takes tensors and files as BYTES over gRPC (as FP32, as the protocol
intends, in the rows that say so) and runs them in threads; KServe takes raw tensors over gRPC and runs them in threads. Each
server runs with the settings that were fastest in a short trial for the number in flight. Not measured: several API servers
and other batch windows of LitServe; adaptive batching, HTTP and parallel workers of MLServer (the workers crash at their
start under the uvloop that it installs); HTTP, batcher and Ray of KServe. The last four columns say how many times faster
ours is, in rate and in p99, with our faster protocol and the range of the rounds: with the runtime that the others use, and
with OpenVINO, which computes the same FP32 files and is what `tune` may choose.

By ONNX Runtime: {verdict(peers, "ours")} By OpenVINO: {verdict(peers, BY_OPENVINO)} On {peers["machine"]["cores"]} cores the network takes most of the time of a request with every server, so little can be
gained over a server that adds little to it.

Tensors of FP32, 602 kB:

{table(peer_columns, peer_rows(peers, "tensor"))}

Photographs, {peers["photo_bytes"] / 1000:.0f} kB:

{table(peer_columns, peer_rows(peers, "photo"))}""")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
