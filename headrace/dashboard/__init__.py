"""What the dashboard of `headrace edge` shows: the other half of `edge.dashboard`, over `edge.seams`.

    parent of the edge's workers                                a worker of the edge
    Observer   asks all parts, keeps the last minutes   <-      Viewers    forwards to browsers what the hub tells, and
    Hub        one socket for all viewers: asks only while                 describes one tenant when it is looked at
               somebody looks, woken by the stages' own news
    trends     pure: rates, and what is getting worse

Invariants: Postgres and the log are asked by one place and at a bounded rate, however many browsers look, and by none when
nobody does. What is shown is what `headrace status --json` and `headrace lag --json` say, in their words.
"""
