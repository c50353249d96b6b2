//! Every golden through the public session API: five families, `star` and `dense` (our `exact`), two turns each, on one,
//! two and five context hosts, against the logits and tokens of an independent oracle.

use stellate_actors::{KvFormat, WeightChoice};
use stellate_tests::{
    Answer, Expected, F32_TOLERANCE, FAMILIES, answer, cases, golden_dir, golden_model, largest_difference,
    small_node,
};

#[tokio::test]
async fn every_golden_is_met_on_one_two_and_five_hosts() -> anyhow::Result<()> {
    for family in FAMILIES {
        let model = golden_model(&golden_dir(family), WeightChoice::F32)?;
        let expected = Expected::read(family)?;
        for hosts in [1, 2, 5] {
            let node = small_node(&model, hosts, KvFormat::F32).await?;
            for case in cases(family)? {
                let answers = answer(&node, &case).await?;
                for (t, (Answer { report, step_logits }, turn)) in answers.iter().zip(&case.turns).enumerate()
                {
                    let name = format!("{}.turn{t}", case.case);
                    let place = format!("{family} {name} on {hosts} hosts");
                    assert_eq!(report.ids, turn.generated, "{place}");
                    let query = report.query_logits.as_deref().unwrap_or_default();
                    let off = largest_difference(query, &expected.tensor(&format!("{name}.query_logits"))?);
                    assert!(off < F32_TOLERANCE, "{place}: query logits off by {off}");
                    let off =
                        largest_difference(step_logits, &expected.tensor(&format!("{name}.step_logits"))?);
                    assert!(off < F32_TOLERANCE, "{place}: step logits off by {off}");
                }
                assert_eq!(answers.len(), case.turns.len());
            }
            node.close().await;
        }
    }
    Ok(())
}
