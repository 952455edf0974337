-- Google BigQuery. Change data set, bucket, prefix and recipe; a table is of one recipe.
CREATE EXTERNAL TABLE cohort_7.tiles (
  slide_id STRING,
  tile INT64,
  x INT64,
  y INT64,
  tissue FLOAT64,
  embedding ARRAY<FLOAT64>
)
OPTIONS (
  format = 'PARQUET',
  enable_list_inference = TRUE,
  uris = ['gs://lab-results/cohort-7/embeddings/recipe=f00df00df00d/*.parquet']
);

CREATE EXTERNAL TABLE cohort_7.slides (
  slide_id STRING,
  status STRING,
  uri STRING,
  etag STRING,
  size_bytes INT64,
  vendor STRING,
  width_px INT64,
  height_px INT64,
  mpp_found FLOAT64,
  mpp_source STRING,
  mpp_used FLOAT64,
  mpp_asked FLOAT64,
  mpp_achieved FLOAT64,
  level INT64,
  reduce INT64,
  resampled BOOL,
  icc_profile BOOL,
  tile_size_l0 FLOAT64,
  n_tiles INT64,
  tissue_mm2 FLOAT64,
  mask STRUCT<key_value ARRAY<STRUCT<key STRING, value FLOAT64>>>,
  error_kind STRING,
  stage STRING,
  reason STRING,
  seconds FLOAT64,
  gets INT64,
  bytes_fetched INT64,
  bytes_needed INT64,
  retries INT64,
  output STRING,
  output_etag STRING,
  input_fp STRING,
  plan_fp STRING,
  run STRING,
  finished_at STRING,
  record_etag STRING,
  mean_embedding ARRAY<FLOAT64>,
  max_embedding ARRAY<FLOAT64>
)
OPTIONS (
  format = 'PARQUET',
  enable_list_inference = TRUE,
  uris = ['gs://lab-results/cohort-7/slides/recipe=f00df00df00d/*.parquet']
);
