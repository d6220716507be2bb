"""What a replica logs of its start, which `midstep run` shows while it waits."""

MEASURING = "measuring what this stage's work costs"
