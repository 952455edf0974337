-- Amazon Athena. Change bucket, prefix and recipe in both places; a table is of one recipe.
CREATE EXTERNAL TABLE tiles (
  slide_id string,
  tile int,
  x int,
  y int,
  tissue float,
  embedding array<float>
)
STORED AS PARQUET
LOCATION 's3://lab-results/cohort-7/embeddings/recipe=f00df00df00d/';

CREATE EXTERNAL TABLE slides (
  slide_id string,
  status string,
  uri string,
  etag string,
  size_bytes bigint,
  vendor string,
  width_px int,
  height_px int,
  mpp_found double,
  mpp_source string,
  mpp_used double,
  mpp_asked double,
  mpp_achieved double,
  level int,
  reduce int,
  resampled boolean,
  icc_profile boolean,
  tile_size_l0 double,
  n_tiles bigint,
  tissue_mm2 double,
  mask map<string, double>,
  error_kind string,
  stage string,
  reason string,
  seconds double,
  gets bigint,
  bytes_fetched bigint,
  bytes_needed bigint,
  retries bigint,
  output string,
  output_etag string,
  input_fp string,
  plan_fp string,
  run string,
  finished_at string,
  record_etag string,
  mean_embedding array<float>,
  max_embedding array<float>
)
STORED AS PARQUET
LOCATION 's3://lab-results/cohort-7/slides/recipe=f00df00df00d/';
