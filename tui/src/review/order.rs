//! The order in which items are gone through. An item keeps its number while the screen is open; its place may change.

#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Items by place.
    pub items: Vec<u32>,
    /// Places by item.
    places: Vec<u32>,
}

impl Order {
    /// Of items 0 to n - 1, each once.
    pub fn new(items: Vec<u32>) -> Order {
        let mut places = vec![0; items.len()];
        for (item, place) in items.iter().zip(0..) {
            places[*item as usize] = place;
        }
        Order { items, places }
    }

    pub fn item(&self, place: usize) -> usize {
        self.items[place] as usize
    }

    pub fn place(&self, item: usize) -> usize {
        self.places[item] as usize
    }
}
