//! Tests of the stream are added below.
