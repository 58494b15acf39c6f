"""`/orchestration/metrics`, for Prometheus."""

from fastapi import APIRouter
from fastapi.responses import Response

from plugins.admin.access import Reader, answered
from plugins.metrics.exposition import CONTENT_TYPE
from plugins.metrics.service import Metrics


def metrics_router(metrics: Metrics) -> APIRouter:
    router = APIRouter(prefix="/orchestration", tags=["orchestration"])

    @router.get("/metrics", summary="What Prometheus reads, of all workers of this machine", response_class=Response)
    async def get_metrics(_: Reader) -> Response:
        async def told() -> Response:
            return Response(await metrics.text(), media_type=CONTENT_TYPE)

        return await answered(told())

    return router
