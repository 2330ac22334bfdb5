"""The programs that ``bench.race`` compares, one for each library and method, each written as its users write it.

Each is ``python -m bench.contestants.NAME SETTINGS.json``. Those of other libraries import nothing of Kintsugi.
"""
