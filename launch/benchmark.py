"""Measures every part of the model; the same as `ms-omni bench`.

python launch/benchmark.py --geometry mini
python launch/benchmark.py --geometry mid --reference --reference-python /path/to/reference/bin/python
"""

import sys

from ms_omni.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
