use super::*;
impl Lake {
    pub async fn claim(&self, _: &[u32]) -> Result<(), LakeError> { Ok(()) }
    pub fn release(&self) {}
    pub async fn rebuild(&self) -> Result<i64, LakeError> { Ok(0) }
}
