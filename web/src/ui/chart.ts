/** ECharts with what lines need and no more. Loaded when the first chart is shown. */

import { LineChart } from "echarts/charts";
import { GridComponent, TooltipComponent } from "echarts/components";
import { init, use, type EChartsType } from "echarts/core";
import { CanvasRenderer } from "echarts/renderers";

use([LineChart, GridComponent, TooltipComponent, CanvasRenderer]);

export type Chart = EChartsType;

export function makeChart(element: HTMLElement): Chart {
  return init(element, undefined, { renderer: "canvas" });
}
