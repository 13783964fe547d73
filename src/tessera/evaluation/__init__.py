"""What a trained encoder is good for.

suite -> jobs -> records -> results -> page: `suites` says which tasks and seeds, `tasks/` what each
kind asks, `jobs/` which jobs that makes and does them, `results` what they found. Beside them the
masked-LM loss of a run, and filled masks.
"""
