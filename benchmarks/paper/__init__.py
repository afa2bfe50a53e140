"""The paper's claims, measured on Fashion-MNIST: `python -m benchmarks.paper --data DIR`, or `make results`.

Source: APQ (CVPR 2020), section 4. Every measurement is kept as it is made, so that a stopped run goes on.
"""
