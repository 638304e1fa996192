package bench

// published is the table that the system which warmd follows shows for opt-125m on a
// GPU, in seconds: a standard vLLM against its pool of warm workers. It is printed
// beside ours for its ratios; its machine is not ours.
var published = map[string][2]float64{
	rowAPI:       {8.14, 8.12},
	rowEngine:    {4.88, 2.70},
	rowExecutor:  {2.45, 0.74},
	rowStartup:   {0.51, 0.00},
	rowLoading:   {1.92, 1.96},
	rowInference: {0.14, 0.10},
	rowTotal:     {13.16, 10.92},
}

// The rows of that table, and the one that ours adds.
const (
	rowAPI         = "1. API Server Overhead"
	rowEngine      = "2. Engine Creation"
	rowExecutor    = "   Executor Init & Config"
	rowStartup     = "   Worker Startup / Attach"
	rowLoading     = "   Model Loading"
	rowInference   = "3. Inference"
	rowUnaccounted = "unaccounted"
	rowTotal       = "TOTAL"
)

// rows is the order of the table, with each row's seconds of one start.
var rows = []struct {
	name string
	of   func(Sample) float64
}{
	{rowAPI, func(s Sample) float64 { return s.Stages.Seconds[APIServer] }},
	{rowEngine, func(s Sample) float64 { return s.Stages.Engine() }},
	{rowExecutor, func(s Sample) float64 { return s.Stages.Seconds[Executor] }},
	{rowStartup, func(s Sample) float64 { return s.Stages.Seconds[Startup] }},
	{rowLoading, func(s Sample) float64 { return s.Stages.Seconds[Loading] }},
	{rowInference, func(s Sample) float64 { return s.Stages.Seconds[Inference] }},
	{rowUnaccounted, func(s Sample) float64 { return s.Stages.Unaccounted }},
	{rowTotal, func(s Sample) float64 { return s.Seconds }},
}
