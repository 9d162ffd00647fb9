"""Write docs/serving-speed.md from results/serving.json and results/serving_peers.json.

    python benchmarks/serving_page.py

`tests/test_serving_benchmark.py` holds that the page is what this program writes.
"""

# ruff: noqa: E501  # lines of the page
from __future__ import annotations

import textwrap
from typing import Any

from measurements import ROOT, read, table

PAGE = ROOT / "docs" / "serving-speed.md"

#: What is wanted: figure of the summary, its limit, whether more is better, and how both are written.
TARGETS = (
    ("tensor_share", 0.90, True, "binary FP32 tensors over HTTP at saturation, share of the bare session's best rate"),
    ("pixel_share", 0.90, True, "the same with pixels (UINT8)"),
    ("photo_time_ratio", 1.15, False, "JPEG at saturation, time beside its parts measured apart"),
    ("photo_alone_ratio", 1.15, False, "JPEG alone, p50 beside its parts' p50s"),
    ("alone_over_ms", 1.5, False, "a tensor alone, p50 above the bare session's (ms)"),
)


def wanted_rows(figures: dict[str, float]) -> list[list[str]]:
    rows = []
    for name, limit, more, words in TARGETS:
        rows.append(_wanted(words, figures[name], limit, more, ms=name.endswith("_ms")))
        if name.endswith("_share"):  # by what programs beside this one change least
            rows += [
                [f"- by CPU time an image, {apart}", "-", f"{figures[name.replace('_share', what)]:.0%}", ""]
                for what, apart in _BY_CPU.items()
            ]
    for name, figure in figures.items():
        if name.startswith("nothing_"):
            _, size, other = name.split("_")
            words = f"no network, {int(size):,} bytes, rate beside {_BARE[other]}"
            rows.append(_wanted(words, figure, 0.60, True) if other == "echo" else [words, "-", f"{figure:.0%}", ""])
    return rows


_BY_CPU = {
    "_cpu_share": "client and server together",
    "_cpu_share_without_client": "the server alone",
}
_BARE = {
    "echo": "an echo by Starlette alone",
    "sink": "Starlette alone that answers with as many bytes as ours",
}


def _wanted(words: str, figure: float, limit: float, more: bool, ms: bool = False) -> list[str]:
    def shown(value: float) -> str:
        return f"{value:.2f} ms" if ms else f"{value:.0%}"

    met = figure >= limit if more else figure <= limit
    return [words, f"{'at least' if more else 'at most'} {shown(limit)}", shown(figure), "yes" if met else "no"]


def side_rows(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [
        [
            name,
            f"{row['rate']:.1f}",
            f"{min(row['rates']):.1f} to {max(row['rates']):.1f}",
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
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.1f}",
            f"{1000 * row['server_cpu_ms']:.0f}",
            f"{1000 * row['client_cpu_ms']:.0f}",
        ]
        for size, sides in results.items()
        for name, row in sides.items()
    ]


def peer_rows(result: dict[str, Any], kind: str) -> list[list[str]]:
    ratios = {(one["way"], one["kind"], one["in_flight"]): one for one in result["ratios"]}
    rows = []
    for row in sorted(result["rows"], key=lambda row: row["in_flight"]):
        if row["kind"] == kind:
            ratio = ratios.get((row["way"], kind, row["in_flight"]))
            setting = row["setting"]
            rows.append(
                [
                    str(row["in_flight"]),
                    row["way"],
                    f"{setting['callers']} x {setting['threads']}, {setting['batch']}",
                    f"{row['rate']:.1f}",
                    f"{row['p50_ms']:.1f}",
                    f"{row['p99_ms']:.1f}",
                    f"{row['server_cpu_ms']:.1f}",
                    f"{row['client_cpu_ms']:.2f}",
                    f"{ratio['rate']:.2f}" if ratio else "",
                    f"{ratio['p99']:.2f}" if ratio else "",
                ]
            )
    return rows


def setting_of(setting: dict[str, int]) -> str:
    callers = setting.get("callers", setting.get("executors"))
    return f"{callers} x {setting['threads']} threads, batch {setting['batch']}"


def verdict(result: dict[str, Any]) -> str:
    ratios = result["ratios"]
    ahead = [one for one in ratios if one["rate"] > 1 and one["p99"] > 1]
    many = [one for one in ratios if one["in_flight"] > 1]
    twice = sum(one["rate"] >= 2 for one in many)
    behind = "; ".join(
        f"{one['way']}, {one['kind']}, {one['in_flight']} in flight: rate {one['rate']:.2f}, p99 {one['p99']:.2f}"
        for one in ratios
        if one not in ahead
    )
    return (
        f"Ahead in rate and in p99 in {len(ahead)} of {len(ratios)} comparisons, twice as fast in {twice} of the "
        f"{len(many)} with {max(one['in_flight'] for one in ratios)} in flight"
        + (f". Not ahead: {behind}." if behind else ".")
    )


def wrapped(text: str) -> str:
    """Fill the lines of paragraphs; headings and tables stay as they are."""
    parts = text.split("\n\n")
    return "\n\n".join(part if part[:1] in ("#", "|") else textwrap.fill(part, 118) for part in parts) + "\n"


def page() -> str:
    result, peers = read("serving"), read("serving_peers")
    machine, settings, photos = result["machine"], result["models"]["settings"], result["photos"]
    rows = result["models"]["rows"]
    beside = {name: peers["peers"][name] for name in ("litserve", "mlserver", "kserve") if name in peers["peers"]}
    columns = ["side", "images/s", "rounds", "p50 (ms)", "p99 (ms)", "CPU ms/image", "client's"]
    peer_columns = [
        *("in flight", "server", "callers x threads, batch", "requests/s", "p50 (ms)", "p99 (ms)", "CPU ms"),
        *("client's", "ours: rate", "ours: p99"),
    ]
    return wrapped(f"""# How fast the server is

`python benchmarks/serving_page.py` writes this page from what `benchmarks/serving.py` and `benchmarks/serving_peers.py`
measured. Machine: {machine["cpu"]}, {machine["cores"]} cores, {machine["system"]}, Python {machine["python"]}, onnxruntime
{machine["versions"]["onnxruntime"]}; other programs kept {result["busy_cores_before"]:.1f} cores busy when the first began and
{peers["busy_cores_before"]:.1f} when the second did. {result["network"]} at 224 pixels in FP32, medians of
{result["rounds"]} and of {peers["rounds"]} rounds in turns. **Client and server share the {machine["cores"]} cores**: what the client takes is
in the tables, and is part of what a share of the bare session's rate is lost to. The client is that of
`regnet-deploy bench`; all loads are closed loops.

## What is wanted, and what was measured

{table(["figure", "wanted", "measured", "met"], wanted_rows(result["summary"]))}

## Beside its bare parts

`python benchmarks/serving.py`. The bare session runs in one process, {setting_of(settings["bare"]["float32"])} for
tensors, {setting_of(settings["bare"]["uint8"])} for pixels; the server {setting_of(settings["http"]["float32"])} and
{settings["http"]["float32"]["in_flight"]} requests in flight, {setting_of(settings["http"]["uint8"])} and
{settings["http"]["uint8"]["in_flight"]}: of the settings that were tried the fastest, on both sides. Alone means one request
after the other, 1 x {machine["cores"]} threads on both sides. Photographs are made ones of {photos["width"]}x{photos["height"]} pixels,
quality {photos["quality"]}, {sum(photos["bytes"]) / len(photos["bytes"]) / 1000:.0f} kB; they run on the variant that takes
{"pixels" if settings["photos"]["dtype"] == "uint8" else "tensors"}, {settings["photos"]["in_flight"]} in flight. Their parts measured apart give
{result["summary"]["photo_parts_rate"]:.1f} images/s one after the other on all cores, and
{result["summary"]["photo_parts_p50_ms"]:.2f} ms for one.

{table(columns, side_rows(rows))}

## Without a network

A session that answers at once, behind everything else that the server does, and Starlette alone behind the same uvicorn:
an echo sends back what it got, a sink as many bytes as ours answers with. 16 connections, binary tensors, CPU in
microseconds a request.

{table(["bytes", "server", "requests/s", "p50 (ms)", "p99 (ms)", "CPU (us)", "client's (us)"], nothing_rows(result["nothing"]))}

## Beside other servers

`python benchmarks/serving_peers.py` installs {", ".join(f"{name} {version}" for name, version in beside.items())} into environments of
their own and gives each the same ONNX files, session options and preprocessing, and the fastest handler that could be
written for it: LitServe takes raw bytes by a dependency of FastAPI, in as many worker processes as are best, with and
without batches; MLServer takes tensors and files as BYTES over gRPC and runs them in threads (as FP32, the way that the
protocol means, in the rows that say so); KServe takes raw tensors over gRPC and runs them in threads. Each server has the
settings that were fastest for the number in flight. The last two columns are how many times ours is as fast, in rate and in
p99, by our faster protocol.

{verdict(peers)} The network takes most of the time of a request on {peers["machine"]["cores"]} cores, whoever serves it: what can be
gained over a server that adds little to it is little.

Tensors of FP32, 602 kB:

{table(peer_columns, peer_rows(peers, "tensor"))}

Photographs, {peers["photo_bytes"] / 1000:.0f} kB:

{table(peer_columns, peer_rows(peers, "photo"))}""")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
