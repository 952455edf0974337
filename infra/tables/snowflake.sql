-- Snowflake. `@historay` is an external stage at the output's root; change the recipe in both
-- places; a table is of one recipe.
CREATE EXTERNAL TABLE tiles (
  slide_id VARCHAR AS (value:slide_id::VARCHAR),
  tile NUMBER(10, 0) AS (value:tile::NUMBER(10, 0)),
  x NUMBER(10, 0) AS (value:x::NUMBER(10, 0)),
  y NUMBER(10, 0) AS (value:y::NUMBER(10, 0)),
  tissue FLOAT AS (value:tissue::FLOAT),
  embedding ARRAY AS (value:embedding::ARRAY)
)
LOCATION = @historay/embeddings/recipe=f00df00df00d/
AUTO_REFRESH = FALSE
FILE_FORMAT = (TYPE = PARQUET);

CREATE EXTERNAL TABLE slides (
  slide_id VARCHAR AS (value:slide_id::VARCHAR),
  status VARCHAR AS (value:status::VARCHAR),
  uri VARCHAR AS (value:uri::VARCHAR),
  etag VARCHAR AS (value:etag::VARCHAR),
  size_bytes NUMBER(19, 0) AS (value:size_bytes::NUMBER(19, 0)),
  vendor VARCHAR AS (value:vendor::VARCHAR),
  width_px NUMBER(10, 0) AS (value:width_px::NUMBER(10, 0)),
  height_px NUMBER(10, 0) AS (value:height_px::NUMBER(10, 0)),
  mpp_found FLOAT AS (value:mpp_found::FLOAT),
  mpp_source VARCHAR AS (value:mpp_source::VARCHAR),
  mpp_used FLOAT AS (value:mpp_used::FLOAT),
  mpp_asked FLOAT AS (value:mpp_asked::FLOAT),
  mpp_achieved FLOAT AS (value:mpp_achieved::FLOAT),
  level NUMBER(10, 0) AS (value:level::NUMBER(10, 0)),
  reduce NUMBER(10, 0) AS (value:reduce::NUMBER(10, 0)),
  resampled BOOLEAN AS (value:resampled::BOOLEAN),
  icc_profile BOOLEAN AS (value:icc_profile::BOOLEAN),
  tile_size_l0 FLOAT AS (value:tile_size_l0::FLOAT),
  n_tiles NUMBER(19, 0) AS (value:n_tiles::NUMBER(19, 0)),
  tissue_mm2 FLOAT AS (value:tissue_mm2::FLOAT),
  mask VARIANT AS (value:mask::VARIANT),
  error_kind VARCHAR AS (value:error_kind::VARCHAR),
  stage VARCHAR AS (value:stage::VARCHAR),
  reason VARCHAR AS (value:reason::VARCHAR),
  seconds FLOAT AS (value:seconds::FLOAT),
  gets NUMBER(19, 0) AS (value:gets::NUMBER(19, 0)),
  bytes_fetched NUMBER(19, 0) AS (value:bytes_fetched::NUMBER(19, 0)),
  bytes_needed NUMBER(19, 0) AS (value:bytes_needed::NUMBER(19, 0)),
  retries NUMBER(19, 0) AS (value:retries::NUMBER(19, 0)),
  output VARCHAR AS (value:output::VARCHAR),
  output_etag VARCHAR AS (value:output_etag::VARCHAR),
  input_fp VARCHAR AS (value:input_fp::VARCHAR),
  plan_fp VARCHAR AS (value:plan_fp::VARCHAR),
  run VARCHAR AS (value:run::VARCHAR),
  finished_at VARCHAR AS (value:finished_at::VARCHAR),
  record_etag VARCHAR AS (value:record_etag::VARCHAR),
  mean_embedding ARRAY AS (value:mean_embedding::ARRAY),
  max_embedding ARRAY AS (value:max_embedding::ARRAY)
)
LOCATION = @historay/slides/recipe=f00df00df00d/
AUTO_REFRESH = FALSE
FILE_FORMAT = (TYPE = PARQUET);
