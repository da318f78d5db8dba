//! The local stack: services, stand-ins and the development server.

pub mod claude;
pub mod proxy;
pub mod upstash;
mod wire;
