"""The server of Darkroom.

The life of a request: it comes in at `api`, is planned and admitted by `job_manager` and `jobs`, and stepped by
`engine`, with `models` kept in memory, `networks` made to run well, and `schedulers` stepped. `pictures` are decoded
and encoded; `config`, `errors` and `device` lie under all. A package imports only from those below it:

    cli                                    may import everything, inside functions
    cluster                                edges in front of replicas, each of which is all below
    app                                    composition root
    api                                    the only package that touches protobuf and gRPC, with app
    observe                                what operators see: log, watchdog, metrics, traces
    job_manager                            registry, admission, submission, drain
    engine                                 the step engine; torch runs here
    jobs                                   what crosses threads, and the planner
    models                                 what is offered, and what of it is in memory
    pictures   networks   schedulers       know neither jobs nor models
    config     errors     device           know nothing of each other

The map of threads, each with what it runs, and after the arrow with what it may touch. Nothing else is shared.

    event loop             api, job_manager, models.residency, jobs.mailbox, schedulers.tables.Tables
                           → Job until it is submitted, and Job.queued; ResidencyManager; Mailbox
    engine                 engine, and the hooks of plugins but those named below
                           → torch; Slot, Sample; Job.progress
    planner (1)            Planner._plan; key, wants, first_evaluation, read_prompt, prompt_keys of plugins
                           → tokenizers; the planner's caches
    reader (2)             api.validation, Planner._prepare_inputs; Task.canvas, preprocessors
                           → nothing shared
    encoder (2)            api.encoding; finishers
                           → nothing shared
    arrivals (1 a kind)    waiting for CUDA events
    tables (1)             schedulers.tables.make_table
                           → its own table, which is complete when it is handed over, and never changes
    loader, leaver (1)     Holding.load, park, drop
                           → a holding that nobody uses
    background, compiler   networks.traced, networks.compiled
                           → copies of a network
    folders (1)            models.asset_folders: lists files, and reads headers of new ones
                           → nothing shared
    metrics                observe.metrics, when somebody asks for them
                           → numbers, to read
    OpenTelemetry's        sending spans
                           → spans of ended jobs
    writer (1 a stream)    observe.streams: what is printed and logged
                           → a file descriptor
"""
