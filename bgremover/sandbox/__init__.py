"""A stand-in for the API on loopback, for the demo, the tests and a first look.

It honours the documented contract, charges nothing, and cuts plain backgrounds out by colour.
It is no replacement for the service.
"""
