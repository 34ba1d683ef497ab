local bough = require "bough"
local compare = require "bough.compare"
local fake = require "spec.support.fake_engine"
local fixture = require "spec.engine.fixture"
local full = require "spec.support.fake_full"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

describe("bough.compare", function()
  it("sorts into added, changed and deleted, and prints a line for each", function()
    local diff = compare.new {
      { op = "deleted", path = "/y", what = {}, old_kind = "dir", old_size = 5, old_mode = 493 },
      { op = "changed", path = "/etc/passwd", what = { "content", "mode" }, kind = "file", old_kind = "file",
        size = 2, old_size = 1, mode = 384, old_mode = 420 },
      { op = "added", path = "/x\n", what = {}, kind = "file", size = 3, mode = 420 },
    }
    assert.equal("C /etc/passwd (content, mode)\nA /x\\n\nD /y\n", tostring(diff))
    assert.equal(tostring(diff), diff:text())
    assert.equal(3, #diff)
    assert.same({ 1, 1, 1 }, { #diff.added, #diff.changed, #diff.deleted })
    assert.same({ "/x\n", "file", 3 }, { diff.added[1].path, diff.added[1].kind, diff.added[1].size })
    assert.same({ "content", "mode" }, diff.changed[1].what)
    assert.same({ "dir", 5, 493 }, { diff.deleted[1].kind, diff.deleted[1].size, diff.deleted[1].mode })
    assert.is_nil(diff.added[1].what)
    local lines = {}
    for _, change in ipairs(diff) do lines[#lines + 1] = tostring(change) end
    assert.same({ "C /etc/passwd (content, mode)", "A /x\\n", "D /y" }, lines)
  end)

  it("orders as a walk does: a directory, what is below it, its next sibling", function()
    local records = {}
    for i, path in ipairs { "/b", "/a-", "/a/z", "/a" } do records[i] = { op = "added", path = path } end
    assert.equal("A /a\nA /a/z\nA /a-\nA /b\n", tostring(compare.new(records)))
    assert.equal("", tostring(compare.new {}))
  end)
end)

describe("image:diff", function()
  local box, base
  before_each(function()
    box = fake.open(full)
    base = fake.base(box)
  end)
  after_each(function() box:close() end)

  it("tells what this image has that the other has not", function()
    local image = base:run "write /new 1;write /etc/motd changed"
    local diff = image:diff(base)
    assert.equal("C /etc/motd (content)\nA /new\n", tostring(diff))
    assert.equal("C /etc/motd (content)\nD /new\n", tostring(base:diff(image)))
    assert.equal(0, #image:diff(image))
  end)

  it("takes sessions, tags and uuids, on either side", function()
    local session = base:session()
    session:run "write /new 1"
    assert.equal("A /new\n", tostring(session:diff(base)))
    assert.equal("D /new\n", tostring(base:diff(session)))
    assert.equal("A /new\n", tostring(session:image():diff "busybox"))
    assert.equal("A /new\n", tostring(session:diff(base.uuid)))
  end)

  it("refuses what is no image of the same engine", function()
    local other <close> = fake.open(full)
    local foreign = fake.base(other)
    assert.match("another engine", raises("invalid", base.diff, base, foreign).message)
    for _, wrong in ipairs { 5, {}, true } do raises("invalid", base.diff, base, wrong) end
    assert.equal("diff", raises("not_found", base.diff, base, "nonesuch").op)
    raises("disposed", base.diff, base, base:run { "noop", disposable = true })
    local plain <close> = fake.open()
    local image = fake.base(plain)
    raises("unsupported", image.diff, image, image:run "write /x 1")
  end)
end)

describe("image:diff in the embedded engine", function()
  local box, base

  setup(function()
    box = bough.open(scratch.store())
    base = (box.images:use "busybox"):run [[
      mkdir -p /d/gone/deep /d/kept; cd /d
      echo 1 >content; echo 1 >mode; echo 1 >owner; echo 1 >type; echo 1 >gone/deep/f
      ln -s old link; echo 1 >same; echo 1 >kept/untouched
    ]]
  end)

  teardown(function() box:close() end)

  local CHANGE = [[
    cd /d; echo 2 >content; chmod 600 mode; chown 1:1 owner; rm type; mkdir type; rm -r gone
    rm link; ln -s new link
    touch same; mkdir new; echo x >new/file; touch -t 200001010000 kept
  ]]
  local EXPECTED = "C /d/content (content)\nD /d/gone\nD /d/gone/deep\nD /d/gone/deep/f\nC /d/link (target)\n"
    .. "C /d/mode (mode)\nA /d/new\nA /d/new/file\nC /d/owner (owner)\nC /d/type (type)\n"

  local function as_user_or_root(text)
    -- without a range of uids there is nobody to give a file to
    return text:gsub("C /d/owner %(owner%)\n", "")
  end

  it("names each difference once, with what it is", function()
    local image = base:run(CHANGE)
    local diff = image:diff(base)
    local text = tostring(diff):gsub(" %(content, target%)", " (target)"):gsub(" %(type[^)]*%)", " (type)")
    assert.equal(as_user_or_root(EXPECTED), as_user_or_root(text))
    assert.equal(#diff, #diff.added + #diff.changed + #diff.deleted)
    local back = base:diff(image)
    assert.equal(#diff.added, #back.deleted)
    assert.equal(#diff.deleted, #back.added)
    assert.equal(#diff.changed, #back.changed)
    assert.equal(0, #image:diff(image))
    assert.equal(0, #image:run("true"):diff(image))
  end)

  it("is the same after compaction", function()
    local image = base:run(CHANGE)
    local before = tostring(image:diff(base))
    local last = image
    for i = 1, 40 do last = last:run("echo " .. i .. " >/d/new/" .. i) end
    box:compact(last)
    fixture.until_true("the end of compaction", function() return not box:info().compacting end)
    assert.equal(before, tostring(image:diff(base)))
    assert.equal(40, #last:diff(image).added)
  end)

  it("tells of unrelated images too", function()
    local dir = scratch.dir()
    scratch.file("x", dir .. "/only")
    local other = box.images:import(dir)
    local diff = other:diff(base)
    assert.equal("/only", diff.added[1].path)
    assert.is_true(#diff.deleted > 10)
  end)
end)
