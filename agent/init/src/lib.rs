//! The wire format of init's link. stub
