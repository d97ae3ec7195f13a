"""Show results: tables in the terminal, a run's page, and PNG files.

`columns` lists what tables show of a point. `tables` prints fronts, `page` writes a run's HTML page from `page_data`,
`plots` and `pictures` draw with matplotlib. Tables and the page load neither torch nor matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dato.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from dato.report.page import write_page
    from dato.report.plots import curves_picture, front_picture, quality_plot, speed_chart
    from dato.report.schedule_and_sample_pictures import image_grid, samples_picture, schedules_picture
    from dato.report.tables import front_table

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "curves_picture": "dato.report.plots",
        "front_picture": "dato.report.plots",
        "front_table": "dato.report.tables",
        "image_grid": "dato.report.schedule_and_sample_pictures",
        "quality_plot": "dato.report.plots",
        "samples_picture": "dato.report.schedule_and_sample_pictures",
        "schedules_picture": "dato.report.schedule_and_sample_pictures",
        "speed_chart": "dato.report.plots",
        "write_page": "dato.report.page",
    },
)
