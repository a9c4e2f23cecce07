use super::*;
use crate::postgres::types::fields;
use arrow::array::{BooleanArray, Decimal128Array, Int64Array, ListArray, StringArray, TimestampMicrosecondArray};
use pgwire::api::portal::Format;

fn texts(name: &str, values: ArrayRef) -> Vec<Option<String>> {
    let schema = Arc::new(Schema::new(vec![Field::new(name, values.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema.clone(), vec![values]).unwrap();
    let fields = fields(&schema, &Format::UnifiedText);
    let columns = Columns::new(&schema, &batch, &fields).unwrap();
    let value = |row| {
        let data = columns.row(row).unwrap().data;
        match i32::from_be_bytes(data[..4].try_into().unwrap()) {
            -1 => None,
            length => Some(String::from_utf8(data[4..4 + length as usize].to_vec()).unwrap()),
        }
    };
    (0..batch.num_rows()).map(value).collect()
}

fn all(wanted: &[&str]) -> Vec<Option<String>> {
    wanted.iter().map(|text| Some((*text).to_owned())).collect()
}

#[test]
fn values_are_texts_as_postgresql_has_them() {
    let tokens = Int64Array::from(vec![Some(-1), Some(5), None]);
    let wanted = [Some("18446744073709551615".to_owned()), Some("5".to_owned()), None];
    assert_eq!(texts("message_token", Arc::new(tokens)), wanted);
    assert_eq!(texts("offset", Arc::new(Int64Array::from(vec![-1]))), all(&["-1"]));
    assert_eq!(texts("b", Arc::new(BooleanArray::from(vec![true, false]))), all(&["t", "f"]));
    let times = TimestampMicrosecondArray::from(vec![1_760_000_000_123_000, -1, 0]).with_timezone("UTC");
    let wanted = ["2025-10-09 08:53:20.123+00", "1969-12-31 23:59:59.999999+00", "1970-01-01 00:00:00+00"];
    assert_eq!(texts("t", Arc::new(times)), all(&wanted));
    let money = Decimal128Array::from(vec![14_000, -1]).with_precision_and_scale(18, 6).unwrap();
    assert_eq!(texts("cost", Arc::new(money)), all(&["0.014000", "-0.000001"]));
    let lists = ListArray::from_iter_primitive::<Int16Type, _, _>([Some(vec![Some(1), None]), Some(vec![])]);
    assert_eq!(texts("l", Arc::new(lists)), all(&["{1,NULL}", "{}"]));
    let mut words = arrow::array::ListBuilder::new(arrow::array::StringBuilder::new());
    words.append_value([Some("a b"), Some("c\"d"), Some(""), Some("null"), Some("e")]);
    assert_eq!(texts("w", Arc::new(words.finish())), all(&[r#"{"a b","c\"d","","null",e}"#]));
    assert_eq!(texts("s", Arc::new(StringArray::from(vec!["a\tb"]))), all(&["a\tb"]));
}

#[test]
fn intervals_are_in_the_style_of_postgresql() {
    assert_eq!(interval_text(0, 0, 0), "00:00:00");
    assert_eq!(interval_text(14, 1, 3_723_500_000), "1 year 2 mons 1 day 01:02:03.5");
    assert_eq!(interval_text(0, -2, -60_000_000), "-2 days -00:01:00");
}
