"""All routes of A1111's dialect."""

from starlette.routing import Route

from serve.http.a1111.images import ImagesRoutes
from serve.http.a1111.lists import ListsRoutes
from serve.http.a1111.options import OptionsRoutes
from serve.http.a1111.png_info import PngInfoRoute
from serve.http.a1111.progress import ProgressRoutes
from serve.http.a1111.running import Running
from serve.http.front_desk import FrontDesk
from serve.http.picture_sources import PictureSources
from serve.jobs.client_options import ClientOptions
from serve.jobs.database import Database


def a1111_routes(desk: FrontDesk, sources: PictureSources, database: Database) -> list[Route]:
    running, kept = Running(), ClientOptions(database)
    options = OptionsRoutes(desk.models, kept)
    return [
        *ImagesRoutes(desk, sources, kept, running).routes,
        *ProgressRoutes(running).routes,
        *options.routes,
        *ListsRoutes(desk, options).routes,
        *PngInfoRoute().routes,
    ]
