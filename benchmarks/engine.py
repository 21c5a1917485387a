"""Speed of the fit engine on one core: python benchmarks/engine.py [--quick] [--profile]"""

import argparse
from dataclasses import dataclass, replace

import one_thread  # noqa: F401  before NumPy
from measure import best_of, fitted_exponent, gemm_peak, machine, peak_allocated
from peer import compare
from profiling import profile, report
from roofline import Work, evaluation_seconds, one_evaluation, work_of
from scene import field_size, make_problem

from tract7dt.fit.engine import fit

STANDARD = (30, 6)


@dataclass(frozen=True)
class Row:
    "One size: mean over seeds. Seconds are for one fit."

    count: int
    bands: int
    wall: float
    cpu: float
    iterations: float
    work: Work
    megabytes: float

    @property
    def per_source_and_band(self) -> float:
        "Milliseconds."
        return 1e3 * self.cpu / self.count / self.bands

    def text(self, peak: float) -> str:
        "A line of the table."
        rate = 1e-9 * self.work.flops / self.cpu
        return (
            f"{self.count:7d} {self.bands:5d} {1e3 * self.wall:9.1f} {1e3 * self.cpu:9.1f} "
            f"{self.per_source_and_band:10.3f}"
            f" {self.iterations:6.1f} {self.work.full:6.1f} {self.work.light:6.1f} "
            f"{1e-9 * self.work.flops:8.2f} {rate:9.1f}"
            f" {peak / rate:10.1f} {1e9 * peak * self.cpu / self.work.plain:10.1f} {self.megabytes:8.0f}"
        )


HEADER = (
    "sources bands   wall ms    cpu ms  ms/src/bnd  iter   full  light    GFlop  GFlop/s   x "
    "roofline of        MB\n"
    "                                                              (of matrix products)  work done  "
    "plain scheme"
)


def measure(count: int, bands: int, seeds: int, repeats: int) -> Row:
    """Fit fields of one size: several seeds, each `repeats` times after a first run in which memory is
    measured.
    """
    walls, cpus, iterations, works, memory = [], [], [], [], []
    for seed in range(1, seeds + 1):
        problem = make_problem(count, bands, seed)
        megabytes, _ = peak_allocated(lambda: fit(problem))
        timing = best_of(repeats, lambda: fit(problem))
        walls.append(timing.wall)
        cpus.append(timing.cpu)
        iterations.append(timing.result.iterations)
        works.append(work_of(problem, timing.result))
        memory.append(megabytes)
    mean = Work(
        *(
            sum(getattr(w, name) for w in works) / seeds
            for name in ("rendering", "gram", "full", "light", "plain")
        )
    )
    return Row(
        count, bands, sum(walls) / seeds, sum(cpus) / seeds, sum(iterations) / seeds, mean, max(memory)
    )


def table(sizes, peak: float, repeats: int, seeds_for) -> list[Row]:
    "Measure sizes (sources, bands) and print each when it is there."
    print(HEADER)
    rows = []
    for count, bands in sizes:
        rows.append(measure(count, bands, seeds_for(count, bands), repeats))
        print(rows[-1].text(peak), flush=True)
    return rows


def growth(rows: list[Row], name: str, base: int) -> str:
    """Fitted exponent of the time, and time per source and band at the largest size against that at size
    `base`.
    """
    sizes = [getattr(row, name) for row in rows]
    first, last = rows[sizes.index(base)], rows[-1]
    ratio = last.per_source_and_band / first.per_source_and_band
    exponent = fitted_exponent(sizes, [row.cpu for row in rows])
    memory = fitted_exponent(sizes, [row.megabytes for row in rows])
    return (
        f"growth with {name}: time ~ size^{exponent:.2f}, memory ~ size^{memory:.2f}; "
        f"per source and band x {ratio:.2f} from {base} to {sizes[-1]}"
    )


def standard_problem(peak: float, repeats: int, seeds: int) -> None:
    "Print the standard problem and the rates of its two kernels alone."
    count, bands = STANDARD
    print(
        f"\nStandard problem: {count} sources, {bands} bands, {field_size(count)} x "
        f"{field_size(count)} pixels, "
        f"S/N 3 to 300 in each band, mean of {seeds} fields"
    )
    (row,) = table([STANDARD], peak, repeats, lambda *_: seeds)
    problem = make_problem(*STANDARD)
    once, (rendering, whole) = one_evaluation(problem), evaluation_seconds(problem, 3 * repeats)
    idle = best_of(repeats, lambda: fit(replace(problem, options=replace(problem.options, max_iters=0))))
    print(
        f"rendering everything once: {1e3 * rendering:.1f} ms at "
        f"{1e-9 * once.rendering / rendering:.1f} GFlop/s; "
        f"one full evaluation {1e3 * whole:.1f} ms at {1e-9 * once.flops / whole:.1f} GFlop/s"
    )
    print(
        f"the fit without any iteration (planning, one evaluation, errors): {1e3 * idle.cpu:.1f} ms; "
        f"roofline of the work done {1e-6 * row.work.flops / peak:.1f} ms, of the plain scheme "
        f"{1e-6 * row.work.plain / peak:.1f} ms"
    )


def peer(count: int, repeats: int) -> None:
    "Print stars per second, ours and photutils'."
    print(
        f"\n{count} stars in one band (Moffat PSF stamps of 55 x 55 pixels), median |flux "
        f"difference| in errors"
    )
    for fixed in (False, True):
        rates = compare(count, fixed, repeats)
        for rate in rates:
            print(
                f"  positions {'fixed' if fixed else 'free ':5s}  {rate.who:24s} "
                f"{rate.stars_per_second:9.0f} stars/s "
                f"  ours x {rates[0].stars_per_second / rate.stars_per_second:6.1f}   {rate.difference:.2f}"
            )


def sizes(quick: bool) -> tuple[list, list]:
    "Sizes (sources, bands) of the two growth tables."
    counts, bands = ([10, 30, 100], [1, 6, 12]) if quick else ([10, 30, 100, 250, 500], [1, 3, 6, 12, 24, 40])
    return [(c, STANDARD[1]) for c in counts], [(STANDARD[0], b) for b in bands]


def main(quick: bool, parts: list[str], repeats: int) -> None:
    "Everything, or the parts asked for."
    print(machine())
    peak = gemm_peak()
    print(f"single-precision matrix product, one core: {peak:.1f} GFlop/s")
    by_count, by_bands = sizes(quick)
    if "standard" in parts:
        standard_problem(peak, repeats, 1 if quick else 4)
    if "sources" in parts:
        print("\nGrowth with the number of sources at equal density")
        print(
            growth(
                table(by_count, peak, repeats, lambda c, b: max(1, (30 if quick else 90) // c)), "count", 30
            )
        )
    if "bands" in parts:
        print("\nGrowth with the number of bands")
        print(growth(table(by_bands, peak, repeats, lambda c, b: 1 if quick else 3), "bands", 6))
    if "peer" in parts:
        peer(30 if quick else 100, max(1, repeats // 2))
    if "profile" in parts:
        problem = make_problem(*STANDARD)
        fit(problem)
        print(
            "\nProfile of the standard problem\n"
            + report(profile(lambda: [fit(problem) for _ in range(repeats)]))
        )
    print(f"\nmatrix product again: {gemm_peak():.1f} GFlop/s; {machine().split(';')[0]}")


PARTS = ("standard", "sources", "bands", "peer")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument(
        "--profile", action="store_true", help="also show where the time of the standard problem goes"
    )
    parser.add_argument("--only", nargs="+", choices=(*PARTS, "profile"), default=PARTS, help="parts to run")
    parser.add_argument(
        "--repeats", type=int, default=0, help="runs of each fit; the fastest counts (2 quick, 5 otherwise)"
    )
    words = parser.parse_args()
    main(words.quick, [*words.only, *["profile"] * words.profile], words.repeats or (2 if words.quick else 5))
