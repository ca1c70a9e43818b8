"""`dlgpu bench`: check every op against float64, then time it beside whatever else can do it on this machine.

    networks.py      the convolution layers of six networks, as data
    goals.py         what is to be reached, and which cases tell
    cases.py         what is measured: selecting, shrinking and ordering cases
    ops.py           one entry per op: its inputs, how it is called (here and in PyTorch), FLOPs and bytes
    check.py         float64 truth on a sample of the outputs, and how far off a result may be
    contestants.py   who can run a case: this library, NumPy, PyTorch, cuBLAS
    measure.py       clocks, CUDA graphs, interleaving, statistics, what this machine can do at most
    run.py           the loop: a worker process per stretch of cases, a time budget, results as they come
    report.py        results.json -> Markdown and pictures

docs/benchmarks.md says how the figures are made and how to read them.
"""
