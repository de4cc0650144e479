"""Faults on links between real processes, in network namespaces: `make chaos`, `python -m bench.chaos`. Needs root.

    namespace "hub"                                          namespace "a1"
    fastpipe-agent hub, users ── TUN ── relay ── TUN ── fastpipe-agent run, target

| module | job |
| --- | --- |
| link | the effect of one direction of a link on packets |
| relay | the process that carries packets between TUN devices |
| namespaces | makes network namespaces, and removes them with all their processes |
| processes | child processes, and the times in their logs |
| target, user | the two ends of a request |
| lab | one scenario's namespaces, links and processes |
| scenarios | each fault, its measurement, and its bounds |
| table | rows, as printed |
| command | the command line |

Users and targets run in the namespaces of their hub and agent. No packet leaves the machine.
"""
