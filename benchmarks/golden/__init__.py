"""Networks of this package with the parameters and inputs of published implementations.

Each module has a function `kinds(arrays)` that returns the prefixes under which it recognises
its networks, and a function `compare(golden)` that compares them.
"""
