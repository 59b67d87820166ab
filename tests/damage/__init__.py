"""Cases of damage made from seeds: `python -m tests.damage --cases 3000 --seed 1`, one again by `--only SEED`."""
