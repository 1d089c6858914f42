"""Between the processes of one installation: what only the owner of a partition has, asked over HTTP.

    POST /peer/orgs/{org}/query              a query as the API takes it; its answer, or the problem that it is
    GET  /peer/orgs/{org}/snapshots/metrics  {"items": […]}, and its offset in the header Cmis-Offset if it has one

Authorization: Bearer, a peer token for this org (`store/signing.py`); nothing else opens these paths, and it opens nothing
else. Problems beside the API's own: 503 with the member `reason`, `not_here` or `crowded`. Either side may be of another
version: members that are not known are ignored.
"""

PREFIX = "/peer/orgs"
NOT_HERE, CROWDED = "not_here", "crowded"
OFFSET_HEADER = "Cmis-Offset"
