"""A replica's log lines about its start, which `midstep run` shows while it waits."""

MEASURING = "measuring what this stage's work costs"
