from economizer.engine.scrape import EngineLoad, read_metrics

ONE_CORE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m@full"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m@full"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m@full",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m@full"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="m@full"} 400.0
vllm:prefix_cache_hits_total{engine="0",model_name="m@full"} 100.0
vllm:prefix_cache_hits_created{engine="0",model_name="m@full"} 1.7e+09
vllm:prompt_tokens_total{engine="0",model_name="m@full"} 450.0
vllm:generation_tokens_total{engine="0",model_name="m@full"} 90.0
vllm:iteration_tokens_total_count{engine="0",model_name="m@full"} 70.0
vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3",model_name="m@full"} 9.0
"""


def test_a_vllm_page_tells_the_load_of_its_engine() -> None:
    assert read_metrics(ONE_CORE) == EngineLoad(
        running=3, waiting=2, kv_used=0.25, steps=70, prefill_tokens=350, decode_tokens=90
    )


def test_data_parallel_cores_are_summed_and_their_shares_averaged() -> None:
    second = ONE_CORE.replace('engine="0"', 'engine="1"').replace("} 0.25", "} 0.75").replace("} 100.0", "} 300.0")
    assert read_metrics(ONE_CORE + second) == EngineLoad(
        running=6, waiting=4, kv_used=0.5, steps=140, prefill_tokens=500, decode_tokens=180
    )


def test_older_versions_names_are_known() -> None:
    page = 'vllm:gpu_cache_usage_perc{model_name="m"} 0.5\nvllm:num_requests_running{model_name="m"} 1.0\n'
    assert read_metrics(page) == EngineLoad(running=1, kv_used=0.5)


def test_other_engines_that_count_the_same_things_are_read_too() -> None:
    assert read_metrics("llamacpp:requests_processing 1\nllamacpp:requests_deferred 4\n") == EngineLoad(
        running=1, waiting=4
    )
    page = 'sglang:num_running_reqs{tp_rank="0"} 8\nsglang:num_queue_reqs 4\nsglang:token_usage 0.5\n'
    assert read_metrics(page) == EngineLoad(running=8, waiting=4, kv_used=0.5)


def test_what_a_page_does_not_tell_is_unknown_and_not_zero() -> None:
    assert read_metrics("process_cpu_seconds_total 3.0\n") == EngineLoad()


def test_an_engine_that_does_not_tell_its_load_does_not_count_as_idle() -> None:
    assert EngineLoad(running=0, waiting=0).idle
    assert not EngineLoad(running=0, waiting=1).idle
    assert not EngineLoad().idle
