--- gzip without a library: nothing is made smaller, but each piece stands for itself, as after a sync flush.

local gzip = {}

local TABLE = {}
for i = 0, 255 do
  local crc = i
  for _ = 1, 8 do crc = crc & 1 == 1 and crc >> 1 ~ 0xedb88320 or crc >> 1 end
  TABLE[i] = crc
end

local function crc32(text)
  local crc = 0xffffffff
  for i = 1, #text do crc = crc >> 8 ~ TABLE[(crc ~ text:byte(i)) & 0xff] end
  return crc ~ 0xffffffff
end

--- What a stream begins with.
gzip.HEAD = "\x1f\x8b\8\0\0\0\0\0\0\3"

--- One piece of it, at most 65535 bytes.
function gzip.piece(text) return "\0" .. string.pack("<I2I2", #text, ~#text & 0xffff) .. text end

--- Its end, given all of the text.
function gzip.tail(text) return "\1\0\0\xff\xff" .. string.pack("<I4I4", crc32(text), #text & 0xffffffff) end

--- All of it, made of the pieces.
function gzip.whole(...)
  local text, parts = table.concat { ... }, { gzip.HEAD }
  for _, piece in ipairs { ... } do parts[#parts + 1] = gzip.piece(piece) end
  return table.concat(parts) .. gzip.tail(text)
end

return gzip
